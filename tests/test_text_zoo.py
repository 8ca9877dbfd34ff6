"""Networks for texts: padding changes no answer, and each leaves as a graph for any batch and any length."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stillroom.errors import ModelError
from stillroom.models.text_zoo import START
from stillroom.models.zoo import TEXTS, build, empty
from stillroom.taps import read

LENGTHS = torch.tensor([4, 11, 1, 2, 7, 11])
MASK = torch.arange(11) < LENGTHS[:, None]
IDS = torch.randint(1, 40, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
every = pytest.mark.parametrize("name", TEXTS)
WAYS = [
    *((name, {}) for name in TEXTS),
    *((name, {"pool": pool, "layers": 2}) for name in ("bilstm", "bigru") for pool in ("max", "mean", "last")),
    ("textcnn", {"kernels": (1, 2, 9), "filters": 7}),
    ("textmlp", {"hidden": 5}),
]


def made(name, **options):
    torch.manual_seed(0)
    return build(name, shape=(40,), classes=3, **options)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_a_text_alone_and_beside_longer_ones_has_the_same_answer(name, options):
    model = made(name, **options).eval()
    together = model(IDS, MASK)
    assert together.shape == (6, 3) and together.std() > 1e-4
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(IDS[row : row + 1, :length], MASK[row : row + 1, :length])
        assert torch.allclose(together[row], alone[0], atol=1e-6), (row, length)
    dirty = torch.where(MASK, IDS, 7)
    assert torch.allclose(model(dirty, MASK), together, atol=1e-6), "what lies under the padding does not matter"
    longer = functional.pad(IDS, (0, 5)), functional.pad(MASK, (0, 5))
    assert torch.allclose(model(*longer), together, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_every_part_learns_and_padding_does_not(name, options):
    model = made(name, **options)
    functional.cross_entropy(model(IDS, MASK), torch.arange(6) % 3).backward()
    assert not [
        part for part, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0
    ]
    assert not model.embed.weight.grad[0].any() and not model.embed.weight[0].any()
    assert abs(float(model.embed.weight[1:].std()) - START) < 0.01
    assert isinstance(model.head, nn.Linear)


@every
def test_a_text_without_words_has_an_answer(name):
    model = made(name).eval()
    answer = model(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    assert torch.isfinite(answer).all() and torch.equal(answer[0], answer[1])


@every
def test_the_seed_alone_decides_and_an_empty_model_has_no_memory(name):
    first, second = made(name).state_dict(), made(name).state_dict()
    assert all(torch.equal(first[part], second[part]) for part in first)
    state = torch.random.get_rng_state()
    model = empty(name, shape=(40,), classes=3)
    assert all(value.device.type == "meta" for value in model.parameters())
    assert {part: value.shape for part, value in model.state_dict().items()} == {
        part: value.shape for part, value in first.items()
    }
    assert model(IDS.to("meta"), MASK.to("meta")).shape == (6, 3)
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_word_vectors_begin_where_they_are_known(name):
    model = made(name, embedding=8, frozen=True)
    before = model.embed.weight.clone()
    vectors, known = torch.randn(40, 8), torch.arange(40) % 2 == 0
    model.start_embeddings(vectors, known)
    assert torch.equal(model.embed.weight[2::2], vectors[2::2]) and torch.equal(model.embed.weight[1::2], before[1::2])
    assert not model.embed.weight[0].any() and not model.embed.weight.requires_grad and bool(known[0])
    model.start_embeddings(vectors)
    assert torch.equal(model.embed.weight[1:], vectors[1:]) and not model.embed.weight[0].any()
    assert made(name).embed.weight.requires_grad
    for wrong in ((torch.randn(39, 8), None), (torch.randn(40, 9), None), (vectors, known[:3])):
        with pytest.raises(ModelError, match=r"do not fit the model.*Allowed: \(40, 8\)"):
            model.start_embeddings(*wrong)


@pytest.mark.parametrize("name", ["bilstm", "bigru"])
def test_the_memory_is_read_at_one_place(name):
    model = made(name, layers=2).eval()
    batch = {"id": torch.zeros(6, 2).long(), "ids": IDS, "mask": MASK}
    shown = read(model, ["logits", "memory@h", "memory[0]"], takes=("ids", "mask"))(batch)
    assert shown["memory@h"].shape == (6, 11, 2, 2, 128) and torch.equal(shown["memory@h.mask"], MASK)
    assert torch.allclose(shown["logits"], model(IDS, MASK), atol=1e-6)
    assert torch.allclose(shown["memory@h"][:, :, -1].flatten(2)[MASK], shown["memory[0]"][MASK], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bilstm", {"shape": (1, 28, 28)}, "reads texts.*vocabulary size"),
        ("textcnn", {"kernels": []}, "list of whole numbers"),
        ("textcnn", {"kernels": 3}, "list of whole numbers"),
        ("bigru", {"pool": "maximum"}, "max, mean, last"),
        ("textmlp", {"frozen": "yes"}, "true or false"),
        ("textmlp", {"embeding": 3}, "Did you mean 'embedding'"),
    ],
)
def test_mistakes_say_what_is_allowed(name, options, message):
    with pytest.raises(ModelError, match=message):
        build(name, **{"shape": (40,), "classes": 3, **options})


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in TEXTS), ("bigru", {"layers": 2, "pool": "last"})]
)
def test_each_leaves_as_a_graph_for_any_batch_and_length(name, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = made(name, **options).eval()
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(operator, "_dispatch_cache", {}).clear()  # see export.graph: a second one in a process would be stale
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("time", min=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (IDS[:2, :6], MASK[:2, :6]),
            str(tmp_path / "model.onnx"),
            input_names=["ids", "mask"],
            output_names=["logits"],
            dynamic_shapes=(axes, axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows, steps in ((6, 11), (1, 11), (3, 4), (1, 1), (2, 6)):
        ids, mask = IDS[:rows, :steps], MASK[:rows, :steps]
        (answer,) = session.run(["logits"], {"ids": ids.numpy(), "mask": mask.numpy()})
        assert np.allclose(answer, model(ids, mask).detach().numpy(), atol=1e-5), (rows, steps)
