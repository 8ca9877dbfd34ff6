"""The page of losses is what the code says."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

from stillroom.losses import LOSSES
from stillroom.objectives import signature

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_loss_table", ROOT / "scripts" / "make_loss_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, list[str]]:
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row] for row in cells}


def test_the_page_is_current(script, capsys):
    assert script.main(["--check"]) == 0, capsys.readouterr().err


def test_every_loss_has_one_row_with_its_options_and_a_sentence(script):
    found = rows(script.page())
    assert sorted(found) == sorted(LOSSES)
    for name, row in found.items():
        assert len(row) == len(script.COLUMNS) and row[1].endswith((".", "nats.")) and row[2]
        for option in signature(LOSSES[name]).options:
            assert f"`{option}`" in row[3]


def test_what_a_row_says(script):
    row = rows(script.page())["dkd"]
    assert row[2] == "logits (B, C), equal; `labels`"
    assert row[3] == "`temperature` 4 (> 0)<br>`alpha` 1 (>= 0)<br>`beta` 8 (>= 0)"
    assert row[4] == "[2203.08679](https://arxiv.org/abs/2203.08679)"
    assert rows(script.page())["bank"][3].endswith("`teacher_temperature` none (> 0)")


def test_the_page_is_written_once_and_an_old_one_is_told(script, tmp_path, capsys):
    page = tmp_path / "losses.md"
    assert script.main([str(page), "--check"]) == 1 and "not current" in capsys.readouterr().err
    assert script.main([str(page)]) == 0 and script.main([str(page), "--check"]) == 0
    page.write_text(page.read_text().replace("`dkd`", "`ddk`"))
    assert script.main([str(page), "--check"]) == 1


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_docstring_names_shapes_and_every_loss_of_a_teacher_its_source(name):
    text = inspect.getdoc(LOSSES[name])
    assert "Shapes:" in text and text.splitlines()[0].endswith((".", "nats."))
    if signature(LOSSES[name]).sides("teacher"):
        assert "http" in text
