"""What stands between a table and its network: one scale, a place for each category, and one for the unseen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import stillroom
from stillroom.data.tables import TableSource
from stillroom.errors import ModelError
from stillroom.export import export
from stillroom.models.bundle import Deployed, load
from stillroom.models.encode import encode_for, from_description
from stillroom.models.table_encode import TableEncode, check_columns, table_encode
from stillroom.models.zoo import build

TOWNS = ["Bonn", "Köln", "Ulm"]


def source(rows: int = 60) -> TableSource:
    """Ages, towns of which Ulm is in no training row, and a column that never changes."""
    random = np.random.default_rng(0)
    towns = random.integers(0, 2, rows)
    towns[-6:] = 2
    values = np.stack([random.normal(1e6, 3, rows), towns, np.full(rows, 0.1)], 1)
    splits = {"train": range(rows - 20), "validation": range(rows - 20, rows - 10), "test": range(rows - 10, rows)}
    names = ["age", "town", "same"]
    labels = (values[:, 0] > 1e6).astype(int)
    return TableSource(values, labels, names=names, categories={"town": TOWNS}, splits=splits)


def test_numbers_are_brought_to_scale_by_the_training_rows_alone():
    data = source()
    encode = table_encode(data)
    train = encode(data.inputs[data.splits["train"]])
    assert encode.names == ["age", "same", "town = Bonn", "town = Köln", "town = other"]
    assert encode.origins == [0, 2, 1, 1, 1] and train.shape[1] == encode.width == 5
    exact = data.inputs[data.splits["train"], 0].double()
    exact = (exact - exact.mean()) / exact.std(unbiased=False)
    # the column is 300,000 deviations from zero: folding the mean into a product would leave no digit of it
    assert torch.allclose(train[:, 0].double(), exact, atol=0.02)
    assert torch.corrcoef(torch.stack([train[:, 0].double(), exact]))[0, 1] > 1 - 1e-9
    assert train[:, 1].abs().max() < 1e-6, "what never changes is zero, not infinity"


def test_each_category_has_a_place_and_the_unseen_share_one():
    data = source()
    encode = table_encode(data)
    ones = encode(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 2, 0], [0, -1, 0]]))[:, 2:]
    assert ones.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]


def test_a_gap_is_taken_for_the_usual_value():
    data = source()
    encode = table_encode(data)
    train = data.inputs[data.splits["train"]]
    usual = torch.tensor([[train[:, 0].quantile(0.5), train[:, 1].mode().values, 0.1]])
    gaps = torch.full((1, 3), torch.nan)
    assert torch.allclose(encode(gaps), encode(usual), atol=1e-5) and torch.isfinite(encode(gaps)).all()


def test_it_is_made_again_from_its_description():
    data = source()
    encode = encode_for(data)
    again = from_description(json.loads(json.dumps(encode.describe())))
    assert isinstance(again, TableEncode) and repr(again) == repr(encode)
    assert torch.equal(again(data.inputs), encode(data.inputs))
    with pytest.raises(ModelError, match="columns"):
        from_description({"kind": "table"})


@pytest.mark.parametrize("only", ["numeric", "categorical"])
def test_tables_of_one_kind(only):
    data = source()
    kept = [0, 2] if only == "numeric" else [1]
    names = [data.names[place] for place in kept]
    categories = {name: data.categories[name] for name in names if name in data.categories}
    part = TableSource(data.inputs[:, kept], data.labels, names=names, categories=categories, splits=data.splits)
    encode = table_encode(part)
    assert encode(part.inputs).shape == (60, encode.width) and encode.width == (2 if only == "numeric" else 3)


def test_what_cannot_be_meant_is_refused():
    wrong = {
        "no columns": [],
        "not described": [{"kind": "numeric", "name": "a"}],
        "brought to scale": [{"kind": "numeric", "name": "a", "mean": 0, "std": 0, "fill": 0}],
        "has no text": [{"kind": "categorical", "name": "a", "categories": ["x"], "seen": [1], "fill": 0}],
    }
    for words, columns in wrong.items():
        with pytest.raises(ModelError, match=words):
            TableEncode(columns)
    with pytest.raises(ModelError, match="without names of columns"):
        table_encode(stillroom.as_source((torch.zeros(9, 2), torch.arange(9))))
    with pytest.raises(ModelError, match="0 rows"):
        table_encode(source(), torch.empty(0, dtype=torch.int64))


def test_a_table_with_other_columns_is_not_answered():
    data = source()
    encode = table_encode(data)
    check_columns(encode, data)
    check_columns(None, data)
    same = {"labels": data.labels, "splits": data.splits}
    other = TableSource(data.inputs, names=["age", "city", "same"], categories={"city": TOWNS}, **same)
    with pytest.raises(ModelError, match="got 'city' with Bonn.*Allowed: 'town'"):
        check_columns(encode, other)
    other = TableSource(data.inputs, names=data.names, categories={"town": ["Aachen", "Bonn", "Köln"]}, **same)
    with pytest.raises(ModelError, match="got 'town' with Aachen"):
        check_columns(encode, other)
    with pytest.raises(ModelError, match="got 2 columns"):
        check_columns(encode, TableSource(data.inputs[:, :2], names=data.names[:2], categories=data.categories, **same))


def test_the_graph_answers_alike_gaps_and_strangers_included(tmp_path):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    data = source()
    encode = table_encode(data)
    torch.manual_seed(0)
    model = build("mlp", shape=(encode.width,), classes=2, hidden=[8])
    deployed = Deployed(model, encode, classes=["0", "1"]).eval()
    config = {
        "model": {"use": "mlp", "options": {"hidden": [8]}},
        "shape": [encode.width],
        "input": {"dtype": "float32", "shape": [3]},
        "classes": ["0", "1"],
    }
    found = export(
        deployed, tmp_path, examples=data.inputs[:40], check=(data.inputs[40:], data.labels[40:]), config=config
    )
    assert found["files"]["model.onnx"]["agreement"] == 1.0
    odd = torch.cat([data.inputs[-6:], torch.full((2, 3), torch.nan), torch.full((1, 3), -1.0)])
    with torch.no_grad():
        ours = deployed(odd)
        again = load(tmp_path)(odd)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"inputs": odd.numpy()})[0]
    assert torch.equal(ours, again)
    np.testing.assert_allclose(theirs[:8], ours.numpy()[:8], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-3)
