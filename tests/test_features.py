"""Features as a product: scikit-learn's rules, sizes and precisions, whole files, a graph that answers alike."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from stillroom import ArraySource, FeatureExtractor, UserError
from stillroom.errors import DataError, ExportError, ModelError
from stillroom.features import write_features
from stillroom.features.extractor import fitted
from stillroom.features.network import pooled
from stillroom.models.bundle import Deployed
from stillroom.models.encode import ImageEncode
from stillroom.models.zoo import build

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module")
def data() -> ArraySource:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    images = torch.randint(0, 90, (240, *SHAPE), generator=generator, dtype=torch.uint8)
    for one in range(3):
        images[labels == one, :, 4 * one : 4 * one + 4] += 120
    return ArraySource(images, labels, classes=["top", "middle", "bottom"], name="bands")


@pytest.fixture(scope="module")
def model() -> Deployed:
    torch.manual_seed(0)
    config = {
        "model": {"use": "cnn", "options": {"width": 4}},
        "shape": list(SHAPE),
        "classes": ["top", "middle", "bottom"],
        "input": {"dtype": "uint8", "shape": list(SHAPE)},
    }
    return Deployed(build("cnn", shape=SHAPE, classes=3, width=4), ImageEncode([0.3], [0.2]), config=config).eval()


def test_features_are_what_enters_the_last_layer(data, model):
    images = data.inputs[:10]
    seen = []
    hook = model.model.head.register_forward_pre_hook(lambda _, entering: seen.append(entering[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    rows = FeatureExtractor(model).transform(images)
    assert rows.shape == (10, 16) and rows.dtype == np.float32
    assert np.allclose(rows, seen[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("given", ["tensor", "array", "source", "some", "flat"])
def test_every_way_of_giving_inputs_gives_the_same_rows(data, model, given):
    images = data.inputs
    inputs = {
        "tensor": images,
        "array": images.numpy(),
        "source": data,
        "some": (data, torch.arange(240)),
        "flat": images.flatten(1).numpy(),
    }[given]
    extractor = FeatureExtractor(model, batch=64)
    assert np.allclose(extractor.transform(inputs), FeatureExtractor(model, batch=240).transform(images), atol=1e-5)


def test_it_follows_scikit_learn(data, model):
    pipeline = make_pipeline(FeatureExtractor(model, head="pca", dimensions=6), LogisticRegression(max_iter=500))
    scores = cross_val_score(pipeline, data.inputs.numpy(), data.labels.numpy(), cv=3)
    assert scores.min() > 0.8
    original = FeatureExtractor(
        model, "block2", "pca", whiten=True, dimensions=3, dtype="int8", normalise=True, batch=32
    )
    copied = clone(original)
    assert copied.get_params(deep=False).keys() == original.get_params(deep=False).keys()
    assert not hasattr(copied, "head_") and copied.dimensions == 3 and "block2" in repr(copied.tap)


def test_pca_orders_and_whitens(data, model):
    plain = FeatureExtractor(model, head="pca").fit(data)
    rows = plain.transform(data)
    variances = rows.var(axis=0)
    assert (np.diff(variances) <= 1e-6).all() and np.abs(np.corrcoef(rows[:, :4].T) - np.eye(4)).max() < 1e-3
    assert np.array_equal(plain.transform(data, dimensions=3), rows[:, :3])
    white = FeatureExtractor(model, head="pca", whiten=True, dimensions=4).fit(data).transform(data)
    assert np.allclose(white.var(axis=0, ddof=1), 1, atol=1e-2)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1.0), ("float16", 0.999), ("int8", 0.99), ("binary", 0.5)])
def test_precisions_keep_what_they_say(data, model, dtype, close, normalise):
    extractor = FeatureExtractor(model, head="pca").fit(data)
    rows = extractor.transform(data, 8, dtype, normalise)
    wanted = extractor.transform(data, 8, "float32", normalise)
    assert rows.dtype == {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}[dtype]
    assert rows.shape == (240, 1 if dtype == "binary" else 8)
    back = extractor.decode(rows, dtype, dimensions=8, normalise=normalise)
    assert back.shape == (240, 8)
    cosine = (back * wanted).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.mean() >= close - 1e-6
    if dtype == "int8" and not normalise:
        assert np.abs(back - wanted).max() <= extractor.scale_[:8].max() * 0.5 + 1e-6


def test_maps_and_sequences_are_averaged():
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(pooled(maps), maps.mean((2, 3)))
    steps, mask = torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[True, True, False]])
    assert pooled(steps, mask).tolist() == [[2.0]]


def test_images_of_other_sizes_and_channels_are_made_to_fit(data, model):
    colour = data.inputs[:4].repeat(1, 3, 1, 1)
    raw = model.config["input"]
    assert torch.equal(fitted(colour, raw), data.inputs[:4])
    large = torch.nn.functional.interpolate(data.inputs[:4].float(), (24, 24)).to(torch.uint8)
    assert fitted(large, raw).shape == (4, *SHAPE) and fitted(large, raw).dtype == torch.uint8
    with pytest.raises(DataError, match="do not fit the model"):
        fitted(torch.zeros(4, 7), raw)


def test_it_is_saved_and_loaded_without_pickle(data, model, tmp_path):
    extractor = FeatureExtractor(model, head="pca", dimensions=5, dtype="int8").fit(data)
    card = extractor.save(tmp_path / "features")
    assert card["dimensions"] == 5 and card["bytes_a_row"]["binary"] == 1 and card["latency_ms"] > 0
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == [
        "card.json",
        "config.json",
        "features.json",
        "head.safetensors",
        "model.safetensors",
    ]
    loaded = FeatureExtractor.load(tmp_path / "features")
    assert np.array_equal(loaded.transform(data), extractor.transform(data))
    assert loaded.fingerprint() == extractor.fingerprint()
    head = tmp_path / "features" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="another checksum"):
        FeatureExtractor.load(tmp_path / "features")


@pytest.mark.parametrize("tap", ["features", "block2", "logits"])
def test_the_graph_answers_like_transform_head_included(data, model, tap, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    extractor = FeatureExtractor(model, tap, "pca", dimensions=3, normalise=True).fit(data)
    card = extractor.export(tmp_path, examples=data.inputs[:8], check=data.inputs[:40])
    assert card["graph"]["max_abs_difference"] < 1e-4
    assert (
        json.loads((tmp_path / "card.json").read_text())["graph"]["bytes"]
        == (tmp_path / "features.onnx").stat().st_size
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "features.onnx"))
    answer = session.run(None, {"inputs": data.inputs[50:57].numpy()})[0]
    assert np.allclose(answer, extractor.transform(data.inputs[50:57]), atol=1e-4)


def test_a_tap_that_no_graph_holds_is_named(data, tmp_path):
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(12, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(inputs.float().flatten(1, 2))[0][:, -1])

    config = {"shape": list(SHAPE), "outputs": 3, "input": {"dtype": "uint8", "shape": list(SHAPE)}}
    extractor = FeatureExtractor(Deployed(Remembers(), config=config), "lstm@h")
    assert extractor.transform(data.inputs[:5]).shape[0] == 5
    with pytest.raises(ExportError, match="cannot stand in a graph"):
        extractor.export(tmp_path, examples=data.inputs[:5])


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"head": "pca"}, {}, "learnt nothing yet"),
        ({}, {"dimensions": 3}, "have no order"),
        ({}, {"dimensions": 99}, "not that many dimensions"),
        ({}, {"dtype": "int4"}, "cannot be stored so"),
        ({}, {"dtype": "binary"}, "range of each dimension"),
        ({"model": 3}, {}, "read from a model"),
    ],
)
def test_mistakes_are_named(data, model, options, call, message):
    with pytest.raises(UserError, match=message):
        FeatureExtractor(**{"model": model, **options}).transform(data, **call)
    with pytest.raises(UserError, match="no such head"):
        FeatureExtractor(model, head="pcaa").fit(data)


# --- the table ---------------------------------------------------------------------------------------------


def test_a_source_becomes_a_table_that_pandas_reads(data, model, tmp_path):
    extractor = FeatureExtractor(model, head="pca").fit(data)
    target = tmp_path / "features.parquet"
    facts = write_features(extractor, data, target, dimensions=4, dtype="float16", rows=100)
    table = pd.read_parquet(target)
    assert facts["rows"] == len(table) == 240 and facts["columns"] == 4
    assert table.example.tolist() == list(range(240)) and table.label.tolist() == data.labels.tolist()
    assert set(table.split) == {"train", "validation", "test"}
    assert np.array_equal(np.stack(table.features.tolist()), extractor.transform(data, 4, "float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["features.parquet"]
    some = write_features(extractor, data, target, splits=["test"], dtype="binary")
    assert some["rows"] == len(data.splits["test"])


def test_a_table_goes_on_where_it_was_stopped_and_begins_anew_for_other_features(data, model, tmp_path):
    extractor = FeatureExtractor(model, head="pca").fit(data)
    target, asked = tmp_path / "features.parquet", []

    def stop(done: int, of: int, what: str) -> None:
        asked.append(done)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(extractor, data, target, rows=50, progress=stop)
    parts = tmp_path / ".features.parquet.parts"
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(kept) == 2 and not target.exists()
    with pytest.raises(KeyboardInterrupt):
        asked.clear()
        write_features(extractor, data, target, rows=50, progress=stop)
    assert kept == {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    content = bytearray((parts / "000001.parquet").read_bytes())
    content[100] ^= 1  # of the same size, and other numbers
    (parts / "000001.parquet").write_bytes(bytes(content))
    write_features(extractor, data, target, rows=50)
    assert np.array_equal(np.stack(pd.read_parquet(target).features.tolist()), extractor.transform(data))
    with pytest.raises(KeyboardInterrupt):
        asked.clear()
        write_features(extractor, data, target, rows=50, progress=stop)
    write_features(extractor, data, target, rows=50, dtype="int8")
    assert pd.read_parquet(target).features[0].dtype == np.int8 and not parts.exists()


def test_a_split_that_is_not_there_is_named(data, model, tmp_path):
    with pytest.raises(UserError, match="no split 'tset'"):
        write_features(FeatureExtractor(model), data, tmp_path / "a.parquet", splits=["tset"])
