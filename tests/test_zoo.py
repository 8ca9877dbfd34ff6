"""The small networks and the encode in front of them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from stillroom.data.arrays import ArraySource
from stillroom.errors import ModelError
from stillroom.models.encode import ImageEncode, encode_for, from_description, from_source
from stillroom.models.zoo import build, empty, parameters

IMAGES = ("cnn", "mlp", "net", "resnet")


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 17, 13), (2, 5, 3)])
def test_every_model_gives_logits_and_gradients_everywhere(name, shape):
    torch.manual_seed(0)
    model = build(name, shape=shape, classes=7)
    logits = model(torch.randn(5, *shape))
    assert logits.shape == (5, 7) and logits.dtype == torch.float32
    functional.cross_entropy(logits, torch.arange(5)).backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert not missing
    assert isinstance(model.head, torch.nn.Linear)


@pytest.mark.parametrize("name", IMAGES)
def test_the_seed_alone_decides_the_weights(name):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([value.flatten() for value in build(name, shape=(1, 28, 28), classes=10).parameters()])

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


def test_sizes_that_were_promised():
    assert parameters(build("net", shape=(1, 28, 28), classes=10)) == 203_530
    assert parameters(build("cnn", shape=(1, 28, 28), classes=10)) == 28_282
    deep = build("resnet", shape=(3, 32, 32), classes=10, depth=20)
    assert parameters(deep) == 269_722  # the paper says 0.27 million for ResNet-20, option A


@pytest.mark.parametrize(("depth", "blocks"), [(8, [1, 1, 1]), (10, [1, 1, 2]), (12, [1, 2, 2]), (14, [2, 2, 2])])
def test_depth_counts_layers_and_spare_blocks_go_last(depth, blocks):
    model = build("resnet", shape=(3, 32, 32), classes=10, depth=depth)
    assert [len(group) for group in (model.layer1, model.layer2, model.layer3)] == blocks
    weighted = [module for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(weighted) == depth


def test_a_stem_of_two_halves_every_map():
    seen = {}
    for stem in (1, 2):
        model = build("resnet", shape=(1, 28, 28), classes=10, stem=stem).eval()
        model.layer1.register_forward_hook(lambda module, given, maps, stem=stem: seen.update({stem: maps.shape}))
        model(torch.randn(1, 1, 28, 28))
    assert seen[1][2:] == (28, 28) and seen[2][2:] == (14, 14)


def test_net_and_mlp_take_vectors_others_say_that_they_do_not():
    assert build("net", shape=(20,), classes=3)(torch.randn(2, 20)).shape == (2, 3)
    assert build("mlp", shape=(20,), classes=3, hidden=[8])(torch.randn(2, 20)).shape == (2, 3)
    for name in ("cnn", "resnet"):
        with pytest.raises(ModelError, match="reads images.*net or mlp"):
            build(name, shape=(20,), classes=3)


def test_dropout_acts_in_training_only():
    model = build("mlp", shape=(20,), classes=3, dropout=0.5)
    inputs = torch.randn(4, 20)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnot", {}, "Did you mean 'resnet'"),
        ("cnn", {"widht": 8}, "Did you mean 'width'"),
        ("cnn", {"width": 0}, "whole number above 0"),
        ("cnn", {"width": "8"}, "whole number above 0"),
        ("mlp", {"hidden": 8}, "list of whole numbers"),
        ("mlp", {"dropout": 1.0}, "from 0 up to 1"),
        ("resnet", {"depth": 9}, "8, 10, 12"),
        ("resnet", {"depth": 6}, "8, 10, 12"),
        ("resnet", {"stem": 3}, "1 or 2"),
        ("net", {"shape": (1, 28, 28), "classes": 0}, "needs classes"),
    ],
)
def test_mistakes_say_what_is_allowed(name, options, message):
    options = {"shape": (1, 28, 28), "classes": 10, **options}
    with pytest.raises(ModelError, match=message):
        build(name, **options)


@pytest.mark.parametrize("name", IMAGES)
def test_an_empty_model_has_shapes_and_no_memory(name):
    state = torch.random.get_rng_state()
    model = empty(name, shape=(1, 28, 28), classes=10)
    assert all(value.device.type == "meta" for value in model.parameters())
    assert model(torch.empty(2, 1, 28, 28, device="meta")).shape == (2, 10)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_channels_last_changes_nothing(name):
    torch.manual_seed(0)
    model = build(name, shape=(3, 16, 16), classes=4).eval()
    inputs = torch.randn(3, 3, 16, 16)
    plain = model(inputs)
    other = model.to(memory_format=torch.channels_last)(inputs.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, other, atol=1e-5)


# --- encode ----------------------------------------------------------------------------------------


def test_encode_normalises_as_the_usual_two_lines_do():
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    usual = (pixels.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    encode = ImageEncode(mean, std)
    assert torch.allclose(encode(pixels), usual, atol=1e-5)
    assert torch.equal(encode(pixels), encode(pixels.float()))
    assert encode(pixels).dtype == torch.float32


def test_encode_measured_on_rows_gives_mean_zero_and_deviation_one():
    values = np.random.default_rng(0).integers(0, 200, (60, 2, 5, 6), dtype=np.uint8)
    values[40:] = 255
    source = ArraySource(torch.from_numpy(values))
    encode = from_source(source, torch.arange(40))
    seen = encode(source.inputs[:40]).double()
    assert torch.allclose(seen.mean(dim=(0, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(seen.std(dim=(0, 2, 3), correction=0), torch.ones(2, dtype=torch.float64), atol=1e-5)
    shuffled = from_source(source, torch.arange(40).flip(0))
    assert shuffled.describe() == encode.describe()


def test_encode_for_reads_training_rows_only_and_leaves_floats_alone():
    values = torch.zeros(20, 1, 4, 4, dtype=torch.uint8)
    values[10:] = 200
    labels = torch.arange(20) % 2
    splits = {"train": range(10), "validation": [], "test": range(10, 20)}
    source = ArraySource(values, labels, splits={name: list(rows) for name, rows in splits.items()})
    assert encode_for(source).describe()["mean"] == [0.0]
    assert encode_for(source).describe()["std"] == [1.0]  # never changes
    assert encode_for(ArraySource(torch.rand(20, 3))) is None


@pytest.mark.parametrize("size", [None, 6, (6, 4)])
def test_encode_survives_json(size):
    encode = ImageEncode([0.28697], [1 / 3], size)
    again = from_description(json.loads(json.dumps(encode.describe())))
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(again(pixels), encode(pixels))
    assert again(pixels).shape[2:] == {None: (8, 8), 6: (6, 6), (6, 4): (6, 4)}[size]
    assert from_description(None) is None


def test_encode_refuses_what_it_cannot_use():
    with pytest.raises(ModelError, match="above 0"):
        ImageEncode([0.1], [0.0])
    with pytest.raises(ModelError, match="as many"):
        ImageEncode([0.1, 0.2], [0.3])
    with pytest.raises(ModelError, match="kind 'image'"):
        from_description({"kind": "words"})
    with pytest.raises(ModelError, match="0 rows"):
        from_source(ArraySource(torch.zeros(3, 1, 2, 2, dtype=torch.uint8)), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ModelError, match="Only uint8"):
        from_source(ArraySource(torch.rand(3, 2)), torch.arange(3))


@pytest.mark.parametrize("size", [None, 14])
def test_encode_and_model_go_into_one_graph(size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    shape = (1, size or 28, size or 28)
    model = torch.nn.Sequential(ImageEncode([0.3], [0.35], size), build("cnn", shape=shape, classes=10)).eval()
    pixels = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (pixels[:2],), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    assert np.allclose(answer, model(pixels).detach().numpy(), atol=1e-4)
