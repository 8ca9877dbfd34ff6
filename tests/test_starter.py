"""A recipe that is written for a person's own file passes `check`, and names what is in that file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.errors import DataError
from stillroom.recipe import read_recipe
from stillroom.recipe.starter import starter


def texts(folder: Path) -> Path:
    said = "a long enough sentence about the film with the number"
    lines = [f'"{said} {number}, {number % 7}",{("bad", "good")[number % 2]}\n' for number in range(60)]
    file = folder / "reviews.csv"
    file.write_text("review,verdict\n" + "".join(lines), encoding="utf-8")
    return file


def table(folder: Path) -> Path:
    file = folder / "points.csv"
    file.write_text("a,b,species\n" + "".join(f"{n},{n * n % 17},{n % 3}\n" for n in range(90)), encoding="utf-8")
    return file


def pictures(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    return folder / "photos"


def archive(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(folder / "small.npz", x=draw.integers(0, 255, (60, 1, 16, 16), dtype=np.uint8), y=np.arange(60) % 3)
    return folder / "small.npz"


CASES = {
    "texts": (texts, {}, "text", "textcnn"),
    "table": (table, {"label": "species"}, "table", "mlp"),
    "pictures": (pictures, {}, "images", "resnet"),
    "archive": (archive, {}, "npz", "resnet"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_written_recipe_is_good(case, tmp_path):
    make, options, use, teacher = CASES[case]
    target = tmp_path / "my.yaml"
    flags = [part for key, value in options.items() for part in (f"--{key}", value)]
    made = CliRunner().invoke(app, ["new", "--data", str(make(tmp_path)), *flags, str(target)])
    assert made.exit_code == 0, made.output
    recipe = read_recipe(target)
    assert (recipe.data.use, recipe.teacher.model) == (use, teacher)
    assert str(target) in target.read_text(encoding="utf-8").splitlines()[0]
    checked = CliRunner().invoke(app, ["check", str(target), "--tiny"])
    assert checked.exit_code == 0, checked.output


def test_rows_without_a_label_become_a_transfer_set(tmp_path):
    file = tmp_path / "points.csv"
    rows = [f"{n},{n * n % 17},{'ab'[n % 2] if n < 30 else ''},{'train' if n < 60 else 'test'}\n" for n in range(60)]
    held = [f"{n},{n % 5},{'ab'[n % 2]},{('validation', 'test')[n // 80]}\n" for n in range(60, 100)]
    file.write_text("a,b,label,split\n" + "".join(rows + held), encoding="utf-8")
    text = starter(file)
    assert "batch: {labelled: 4, transfer: 64}" in text
    assert "60 train, 20 validation, 20 test" in text


def test_a_table_without_a_clear_label_column_is_asked_about(tmp_path):
    with pytest.raises(DataError, match=r"b \(9 values\), species \(3 values\).*--label"):
        starter(table(tmp_path))


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.xlsx.*\.parquet"):
        starter(tmp_path / "data.xlsx")
