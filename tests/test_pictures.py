"""Pictures: training and predict read the same pixels, and nothing is read wrongly without a word."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.cli import main
from stillroom.cli import models as commands
from stillroom.cli.predicting import predictions
from stillroom.data import pictures
from stillroom.data.pictures import decode, pictures_under
from stillroom.data.table import open_source
from stillroom.errors import DataError, UserError
from stillroom.models.bundle import Deployed


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def levels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(root, each=6, size=(9, 7), classes=("cat", "dog")):
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(levels(*size, 3, seed=10 * place + number)).save(root / name / f"{number}.png")
    return root


class Keeps(nn.Module):
    """Answers with the sum over each half and keeps the pixels it was given."""

    def forward(self, inputs):
        self.seen = inputs
        return torch.stack([inputs.float().flatten(1).sum(1), torch.zeros(len(inputs))], 1)


@pytest.fixture
def model():
    config = {"shape": [3, 6, 6], "input": {"dtype": "uint8", "shape": [3, 6, 6]}, "classes": ["a", "b"]}
    return Deployed(Keeps(), config=config).eval()


@pytest.fixture
def command(monkeypatch, capsys, model, tmp_path):
    monkeypatch.setattr(commands, "_load", lambda place: model)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


# --- one reader --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [1, 3, 6, 8])
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_predict_sees_the_pixels_that_were_trained_on(tmp_path, model, tag, ending):
    root = folder(tmp_path / "pets")
    exif = Image.Exif()
    exif[0x0112] = tag
    given = root / "cat" / f"z.{ending}"
    Image.fromarray(levels(40, 64, 3)).save(given, exif=exif)
    trained = open_source("images", path=root, size=6).inputs[6]  # the last of the cats
    predictions(model, [given])
    assert torch.equal(model.model.seen[0], trained)


def test_exif_tag_3_means_upside_down(tmp_path):
    values = levels(6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "x.png", (3, 6, 6)), values[::-1, ::-1].transpose(2, 0, 1))


def test_a_wide_picture_is_cut_around_its_middle(tmp_path):
    values = levels(4, 10, 3)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(decode(tmp_path / "x.png", (3, 4, 4)), values[:, 3:7].transpose(2, 0, 1))


def test_a_large_jpeg_is_read_small_and_looks_the_same(tmp_path):
    smooth = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(smooth, (640, 1))] * 3, 2)).save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as whole:
        right = np.asarray(whole.convert("L").resize((8, 8), Image.Resampling.BILINEAR), float)
    assert np.abs(decode(tmp_path / "x.jpg", (1, 8, 8))[0] - right).max() <= 1


# --- depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_divided_by_its_depth(tmp_path, ending):
    deep = np.array([[0, 257, 8000], [32896, 52000, 65535], [128, 129, 65000]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"x.{ending}")
    right = np.array([[0, 1, 31], [128, 202, 255], [0, 1, 253]])  # value / 257, to the nearest
    assert np.array_equal(decode(tmp_path / f"x.{ending}", (1, 3, 3))[0], right)
    assert np.array_equal(decode(tmp_path / f"x.{ending}", (3, 3, 3))[2], right)


def test_a_deep_portable_greymap_is_divided_too(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257 * 7, 257 * 200], ">u2").tobytes())
    assert decode(tmp_path / "x.pgm", (1, 1, 2))[0, 0].tolist() == [7, 200]


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_pixels_of_unknown_range_are_refused(tmp_path, model, kind):
    root = folder(tmp_path / "pets")
    Image.fromarray((levels(9, 7) * 100).astype(kind)).save(root / "dog" / "deep.tif")
    for read in (lambda: open_source("images", path=root), lambda: predictions(model, [root / "dog" / "deep.tif"])):
        with pytest.raises(DataError, match=r"range of the pixels of .*deep\.tif is not known: got mode [IF]"):
            read()


# --- size --------------------------------------------------------------------------------------------------


def test_a_picture_is_measured_before_it_is_decoded(tmp_path, model, monkeypatch):
    root = folder(tmp_path / "pets")
    Image.new("L", (200, 100)).save(root / "cat" / "big.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 19_999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for read in (lambda: decode(root / "cat" / "big.png", (3, 6, 6)),):
        with pytest.raises(DataError, match=r"big\.png is too large a picture: got 200 x 100 = 20,000 pixels"):
            read()
    monkeypatch.undo()
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STILLROOM_MAX_PIXELS", "19999")
    with pytest.raises(DataError, match="STILLROOM_MAX_PIXELS=20000"):
        predictions(model, [root / "cat" / "big.png"])
    monkeypatch.setenv("STILLROOM_MAX_PIXELS", "20000")
    assert decode(root / "cat" / "big.png", (1, 2, 2)).max() == 0
    monkeypatch.setenv("STILLROOM_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="STILLROOM_MAX_PIXELS cannot be used: got 'many'"):
        decode(root / "cat" / "big.png", (1, 2, 2))


def test_what_pillow_calls_a_bomb_is_told_in_our_words(tmp_path, model):
    Image.new("1", (13_500, 13_400)).save(tmp_path / "bomb.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="too large a picture: got 13,500 x 13,400 = 180,900,000"):
            predictions(model, [tmp_path / "bomb.png"])
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own bound is put back"


# --- what is passed over, what is told ---------------------------------------------------------------------


def test_files_of_other_systems_are_passed_over(tmp_path, model):
    root = folder(tmp_path / "pets")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "cat" / "._0.png").write_bytes(b"no picture")
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    Image.fromarray(levels(9, 7, 3, seed=99)).save(root / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (root / "cat" / "._0.png").write_bytes(b"no picture")
    (root / "cat" / "Thumbs.db").write_bytes(b"no picture")
    source = open_source("images", path=root, size=6)
    assert len(source) == 12 and source.classes == ["cat", "dog"] and not source.notes
    assert len(predictions(model, [root]).answers) == 12
    hidden = folder(tmp_path / ".kept" / "pets")
    assert len(pictures_under(hidden)) == 12, "a hidden folder that was named itself is looked into"


def test_all_bad_pictures_are_told_at_once(tmp_path, monkeypatch):
    root = folder(tmp_path / "pets", each=12)
    for number in range(3):
        (root / "dog" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as told:
        open_source("images", path=root)
    lines = str(told.value).splitlines()
    assert (
        lines[0] == "3 of 24 pictures cannot be read:" and [f"{n}.png" in lines[n + 1] for n in range(3)] == [True] * 3
    )
    monkeypatch.setattr(pictures, "LISTED", 2)
    with pytest.raises(DataError, match=r"\n  and 1 more$"):
        open_source("images", path=root)


def test_copies_are_counted(tmp_path, command):
    root = folder(tmp_path / "pets", each=10)
    Image.open(root / "cat" / "0.png").save(root / "cat" / "copy.bmp")
    source = open_source("images", path=root, size=6)
    left = sum(len(rows) for rows in source.splits.values())
    assert (len(source), left) == (21, 20)
    assert source.notes == ("1 example left out as the copy of another, once they are 6 x 6 pixels",)
    code, out, _ = command("data", "show", f"images:{root},size=6,channels=1,test=0.3", "--json")
    found = json.loads(out)
    assert code == 0 and found["input"]["shape"] == [1, 6, 6] and found["splits"]["test"] == 6
    assert found["notes"] == ["1 example left out as the copy of another, once they are 6 x 6 pixels"]
    code, _, err = command("data", "show", f"images:{root},sise=6")
    assert code == 2 and "Did you mean 'size'" in err


def test_evaluate_reads_pictures_as_the_model_takes_them(tmp_path, command):
    root = folder(tmp_path / "pets", each=10, classes=("a", "b"))
    code, out, err = command("evaluate", "model", "--data", f"images:{root}", "--json")
    assert code == 0 and json.loads(out)["rows"] == 2, err


def test_an_archive_whose_training_rows_are_its_test_rows_is_refused(tmp_path):
    values = levels(20, 5, 5)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "x.npz", x_train=values, y_train=labels, x_test=values, y_test=labels)
    with pytest.raises(DataError, match="20 rows, each"):
        open_source("npz", path=tmp_path / "x.npz")


# --- predict goes on ---------------------------------------------------------------------------------------


def test_predict_goes_past_bad_pictures_and_lists_them(tmp_path, command):
    root = folder(tmp_path / "pets", each=2)
    (root / "cat" / "bad1.png").write_bytes(b"")
    (root / "dog" / "bad2.png").write_bytes(b"no picture")
    code, out, err = command("predict", "model", root, "--out", "answers.csv")
    assert code == 2 and "Wrote 4 predictions to answers.csv" in out
    assert "2 of 6 files cannot be read:" in err and "bad1.png" in err and "bad2.png" in err and "answers.csv" in err
    rows = (tmp_path / "answers.csv").read_text().splitlines()
    assert rows[0] == "input,class,probability" and len(rows) == 5
    code, out, _ = command("predict", "model", root, "--json", "--all")
    found = json.loads(out)
    assert code == 2 and len(found["predictions"]) == 4 and "bad2.png" in found["bad"]
    assert set(found["predictions"][0]["probabilities"]) == {"a", "b"}
