"""Raw inputs are held to what a bundle names; what the zoo built can be built again from its bundle."""

from __future__ import annotations

import copy
import csv

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.cli.predicting import predictions, table
from stillroom.errors import DataError, ModelError
from stillroom.models.bundle import Deployed, load, save_bundle
from stillroom.models.encode import ImageEncode
from stillroom.models.table_encode import TableEncode
from stillroom.models.zoo import build, built

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
PIXELS[:, 0, 0, :2] = 0, 255


@pytest.fixture
def images():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    config = {"shape": [3, 4, 4], "input": {"dtype": "uint8", "shape": [3, 4, 4]}, "classes": ["a", "b"]}
    return Deployed(network, ImageEncode([0.5] * 3, [0.25] * 3), config=config).eval()


@pytest.fixture
def numbers():
    torch.manual_seed(0)
    config = {"shape": [3], "input": {"dtype": "float32", "shape": [3]}}
    return Deployed(nn.Linear(3, 2), config=config).eval()


GOOD = {
    "uint8": PIXELS,
    "channels last": PIXELS.transpose(0, 2, 3, 1),
    "int64": PIXELS.astype(np.int64),
    "uint16": PIXELS.astype(np.uint16),
    "big-endian": PIXELS.astype(">i4"),
    "floats of pixels": PIXELS.astype(np.float64),
}
WRONG = {
    "floats from 0 to 1": (PIXELS / 255, "float32 from 0 to 1. Allowed: uint8 from 0 to 255. Multiply them by 255"),
    "truth values": (PIXELS > 9, "bool from 0 to 1"),
    "normalised": (PIXELS / 64.0 - 2, "before they were normalised"),
    "16 bits": (PIXELS.astype(np.uint16) * 257, "int64 from 0 to 65535"),
    "NaN": (np.where(PIXELS == 255, np.nan, PIXELS), "hold NaN or infinity: got row 1"),
}


@pytest.mark.parametrize("what", GOOD)
def test_pixels_of_any_type_give_the_same_answer(images, tmp_path, what):
    right = images(torch.from_numpy(PIXELS)).softmax(1).max(1).values
    np.save(tmp_path / "x.npy", GOOD[what])
    found = predictions(images, [tmp_path / "x.npy"]).answers
    assert [one["probability"] for one in found] == pytest.approx(right.tolist(), abs=1e-4)
    assert [one["row"] for one in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("what", WRONG)
def test_pixels_of_another_range_are_refused(images, tmp_path, what):
    values, words = WRONG[what]
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(DataError, match=words):
        predictions(images, [tmp_path / "x.npy"])
    with pytest.raises(DataError, match=words.split(". Allowed")[0].removeprefix("float32 ")):
        images(torch.from_numpy(values))


def test_gradients_may_ask_between_the_levels(images):
    inputs = torch.rand(2, 3, 4, 4, requires_grad=True)
    images(inputs).sum().backward()
    assert inputs.grad is not None


def test_floats_are_held_to_be_finite_but_a_table_may_have_gaps(numbers):
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]])
    with pytest.raises(DataError, match="The inputs hold NaN or infinity: got row 2"):
        numbers(rows)
    assert torch.equal(numbers(rows[:1].double()), numbers(rows[:1])) and numbers(torch.ones(1, 3, dtype=int)).shape
    columns = [{"name": name, "kind": "numeric", "mean": 0.0, "std": 1.0, "fill": 5.0} for name in "abc"]
    config = {"shape": [3], "input": {"dtype": "float32", "shape": [3]}}
    gaps = Deployed(nn.Identity(), TableEncode(columns), config=config)
    assert gaps(rows).tolist() == [[1.0, 2.0, 3.0], [1.0, 5.0, 3.0]]
    with pytest.raises(DataError, match="infinity"):
        gaps(rows / 0)


def test_pixels_do_not_go_into_a_model_of_floats():
    config = {"shape": [3, 4, 4], "input": {"dtype": "float32", "shape": [3, 4, 4]}}
    model = Deployed(nn.Flatten(), config=config)
    with pytest.raises(DataError, match="got uint8 pixels. Allowed: float32 values"):
        model(torch.from_numpy(PIXELS))


# --- rows of a person's own --------------------------------------------------------------------------------


def test_a_table_keeps_its_columns_rows_and_numbers(tmp_path):
    columns = [{"name": "a", "kind": "numeric", "mean": 0.0, "std": 1.0, "fill": 0.0}]
    config = {"shape": [1], "input": {"dtype": "float32", "shape": [1]}, "classes": ["no", "=yes"]}
    linear = nn.Linear(1, 2)
    nn.init.zeros_(linear.bias)
    linear.weight.data[:] = torch.tensor([[0.0], [1.0]])
    model = Deployed(linear, TableEncode(columns), config=config).eval()
    (tmp_path / "x.csv").write_text('id;note;a;class\n12345678901234567;"two\nlines";1,5;x\n007;=1+1;-2;y\n')
    found = predictions(model, [tmp_path / "x.csv"], every=True)
    (tmp_path / "out.csv").write_bytes(table(found.answers))
    with open(tmp_path / "out.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    head = ["input", "row", "id", "note", "a", "class (given)", "class", "probability"]
    assert list(rows[0]) == [*head, "probability of no", "probability of =yes"]
    assert [row["row"] for row in rows] == ["1", "2"] and [row["id"] for row in rows] == ["12345678901234567", "007"]
    assert [row["note"] for row in rows] == ["two\nlines", "'=1+1"] and [row["a"] for row in rows] == ["1,5", "-2"]
    assert [row["class"] for row in rows] == ["'=yes", "no"]
    share = 1 / (1 + np.exp(-1.5))  # sigmoid of 1,5
    assert float(rows[0]["probability"]) == pytest.approx(share, abs=1e-4)
    assert float(rows[0]["probability of no"]) == pytest.approx(1 - share, abs=1e-4)


# --- what the zoo built ------------------------------------------------------------------------------------

MODELS = [("cnn", (3, 8, 8), {"width": 4}), ("mlp", (5,), {"hidden": (7, 6)}), ("resnet", (1, 8, 8), {"depth": 8})]
MODELS += [("lstm", (6, 3), {}), ("textcnn", (50,), {}), ("net", (5,), {"hidden": 3})]


@pytest.mark.parametrize(("name", "shape", "options"), MODELS)
def test_a_bundle_of_the_zoo_needs_no_instance(tmp_path, name, shape, options):
    model = copy.deepcopy(build(name, shape=shape, classes=3, **options)).eval()
    given = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}  # all that distill knows of it
    config = {"model": given, "shape": list(shape), "input": {"dtype": "float32", "shape": list(shape)}}
    noted = save_bundle(tmp_path / "b", model, config=config | {"classes": ["a", "b", "c"]})
    assert noted["model"]["use"] == name
    again = load(tmp_path / "b").model
    assert repr(again) == repr(model)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_was_changed_after_building_is_noted_by_its_class(tmp_path):
    model = build("cnn", shape=(3, 8, 8), classes=3)
    assert built(model, (3, 8, 8), 3) == {"use": "cnn", "options": {}}
    assert built(model, (3, 8, 8), 4) is None and built(nn.Linear(2, 2), (2,), 2) is None
    model.head = nn.Sequential(nn.ReLU(), model.head)
    config = {"shape": [3, 8, 8], "input": {"dtype": "uint8", "shape": [3, 8, 8]}, "classes": ["a", "b", "c"]}
    assert save_bundle(tmp_path / "b", model, config=config)["model"] == {"class": "stillroom.models.zoo.CNN"}
    with pytest.raises(ModelError, match="cannot be built from its configuration alone"):
        load(tmp_path / "b")
