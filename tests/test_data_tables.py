"""The tables of sources and of models in the pages are what the code says."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
from pathlib import Path

import pytest

from stillroom.data.table import SOURCES, options_of
from stillroom.models.zoo import OPTIONS, ZOO

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_data_tables", ROOT / "scripts" / "make_data_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "| `" in line]
    return {row[0].strip("`"): row for row in cells}


def test_the_pages_are_current(script, capsys):
    assert script.main(["--check"]) == 0, capsys.readouterr().err


def test_every_option_of_every_source_is_there_with_its_default(script):
    found = rows(script.options_table())
    for name in SOURCES:
        for option, parameter in options_of(name).items():
            told = found[option][2]
            assert f"`{name}`" in told or told.endswith(": all"), (name, option)
            assert ("needed" in told) or parameter.default is not parameter.empty
    assert found["size"][2] == "28: `digits`<br>32: `images`" and found["seed"][2] == "0: all"


def test_every_model_is_there_with_its_options_and_size(script):
    found = rows(script.models_table())
    assert list(found) == list(ZOO)
    for name, row in found.items():
        options = [one for one in inspect.signature(ZOO[name]).parameters if one not in ("shape", "classes", "config")]
        assert all(f"`{option}`" in row[2] and option in OPTIONS for option in options)
    # Linear 3,072 -> 256 and 256 -> 10; the sum of the layers of the CNN at width 16, by hand.
    assert found["net"][3].startswith(f"{3072 * 256 + 256 + 2560 + 10:,} ")
    weights = 16 * 27 + 32 * 16 * 9 + 64 * 32 * 9 + 64 * 64 + 2 * (16 + 32 + 64 + 64) + 64 * 10 + 10
    assert found["cnn"][3] == f"{weights:,} at 3 x 32 x 32"


def test_an_old_page_is_told_and_written_anew(script, tmp_path, capsys):
    for name in script.pages():
        shutil.copy(ROOT / "docs" / name, tmp_path / name)
    assert script.main([str(tmp_path), "--check"]) == 0
    page = tmp_path / "models.md"
    page.write_text(page.read_text().replace("28,570", "28,571"))
    assert script.main([str(tmp_path), "--check"]) == 1 and "models.md" in capsys.readouterr().err
    assert script.main([str(tmp_path)]) == 0 and script.main([str(tmp_path), "--check"]) == 0
    page.write_text("no place")
    with pytest.raises(SystemExit, match="no place for 'models'"):
        script.main([str(tmp_path)])
