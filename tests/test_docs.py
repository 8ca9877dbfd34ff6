"""What the README and the pages say is what happens: code runs, commands run, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.cli import main
from stillroom.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TINY = ("check", "run", "record", "train")


def tracked() -> list[Path]:
    """Every Markdown file of the project, or all that lie here where there is no git."""
    asked = ["git", "ls-files", "*.md"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    return sorted({*(ROOT / name for name in listed), *PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"})


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """Each fenced block of a language, with the line it begins on."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, one.start()) + 2, one[2]) for one in FENCE.finditer(text) if one[1] == language]


CODE = [
    pytest.param(page, line, code, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    for line, code in blocks(page, "python")
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, a cache of its own, and the generator as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng():
        yield tmp_path


def test_there_is_code_to_run():
    assert sum(page.name == "README.md" for page in (one.values[0] for one in CODE)) >= 2
    assert sum(page.name == "python.md" for page in (one.values[0] for one in CODE)) >= 9


@pytest.mark.parametrize(("page", "line", "code"), CODE)
def test_a_block_of_python_runs_as_it_stands(page, line, code, elsewhere):
    torch.manual_seed(0)
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "page"})  # lines as in the page


# --- commands ---------------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    lines = [line for _, block in blocks(path, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("stillroom ")]


def called(words: list[str]) -> int:
    """Run one command here; training commands are cut down by --tiny and kept in this process."""
    more = ["--tiny"] if words[0] in TINY and "--model" not in words else []
    if words[0] == "run":  # rates are tried in test_cli.py; here they would only take time
        more += ["--jobs", "1", "--quiet", "--set", "trials=[1]"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["stillroom", *words, *more])
        main()
    return int(stop.value.code or 0)


def test_the_commands_of_the_readme_run_in_their_order(elsewhere, capsys):
    said = [f"a film of {number} minutes that was {('dull', 'fine')[number % 2]}" for number in range(60)]
    rows = [f"{text},{('bad', 'good')[number % 2]}" for number, text in enumerate(said)]
    (elsewhere / "reviews.csv").write_text("\n".join(["text,sentiment", *rows]) + "\n", encoding="utf-8")
    listed = commands(ROOT / "README.md")
    assert {words[0] for words in listed} >= {"new", "check", "run", "report", "export"}
    for words in listed:
        code = called(words)
        said = capsys.readouterr()
        assert code == 0, f"stillroom {shlex.join(words)}\n{said.err}"
    assert next(elsewhere.glob("runs/*/report.html"))


@pytest.mark.parametrize("page", [page for page in tracked() if page.name != "README.md"], ids=lambda page: page.name)
def test_other_pages_name_commands_and_options_that_exist(page):
    from typer.main import get_command

    from stillroom.cli.app import app

    for words in commands(page):
        found: Any = get_command(app)
        while hasattr(found, "commands") and words and not words[0].startswith("-"):
            assert words[0] in found.commands, f"{page.name}: stillroom {shlex.join(words)}"
            found, words = found.commands[words[0]], words[1:]
        known = {option for one in found.params for option in one.opts} | {"--help"}
        assert not [word for word in words if word.startswith("--") and word not in known], words


# --- links, tables and facts --------------------------------------------------------------------------------


@pytest.mark.parametrize("page", tracked(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    lost = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            lost.append(target)
        elif anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]:
                lost.append(target)
    assert not lost, f"{page.name} links to what is not there: {lost}"


def test_the_index_lists_every_page():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    missing = [name for name in sorted(pages) if f"({name})" not in text]
    assert not missing


def test_every_recipe_is_described():
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|", text.partition("| recipe |")[2], re.MULTILINE)
    assert set(rows) <= shipped, "the README names a recipe that is not there"
    text = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    listed = re.search(r"^Shipped recipes: (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([\w-]+)`", listed[1])) == shipped


def test_every_recipe_key_and_setting_is_documented_with_its_default():
    from stillroom.recipe import KEYS
    from stillroom.settings import Training

    text = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    rows = {row[0].strip("` "): row[1] for row in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", text, re.MULTILINE)}
    assert not [key for key in KEYS if key not in rows]
    for key, field in Training.model_fields.items():
        assert key in rows, key
        if key not in ("steps", "epochs"):
            default = json.loads(json.dumps(field.default))
            told = "none" if default is None else str(default).lower() if isinstance(default, bool) else f"{default}"
            assert told in rows[key], f"{key}: {told}, not {rows[key]}"


def test_the_pages_name_every_public_name():
    import stillroom

    text = " ".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    missing = [name for name in stillroom.__all__ if name[0] != "_" and not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_the_floors_are_those_of_the_house():
    assigned = next(
        node.value
        for node in ast.parse((ROOT / "tests/test_house.py").read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS"
    )
    floors = {name: set(files) for name, files in ast.literal_eval(assigned) if name != "the package itself"}
    text = (ROOT / "docs/principles.md").read_text(encoding="utf-8").partition("| floor |")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in text.splitlines()[2:]]
    assert {name.strip(): set(re.findall(r"`(\w+)`", files)) for name, files in rows} == floors


def test_every_form_of_a_tap_is_one():
    from stillroom.contracts import place

    table = (ROOT / "docs/python.md").read_text(encoding="utf-8").partition("## Taps")[2].partition("\n\n`read`")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    forms = [form for cell in cells for form in re.findall(r"`([^`]+)`", cell)]
    assert len(forms) >= 15
    for form in forms:
        found = place(form)
        assert form == (f"{found.owner}/{found.tap}" if found.owner else str(found.tap))


# --- the table of the demo ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts/update_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def between(text: str) -> str:
    return text.partition("<!-- demo table -->")[2].partition("<!-- end of demo table -->")[0].strip()


def test_the_table_of_the_demo_is_well_formed(script):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(script.BEGIN) == text.count(script.END) == 1
    found = between(text)
    if not found:
        pytest.skip("no demo was written into the README yet")
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == list(script.COLUMNS)
    assert {row.count("|") for row in rows} == {len(script.COLUMNS) + 1}
    names = [row.split("|")[1].strip(" `") for row in rows[2:]]
    assert names[:2] == ["teacher", "alone"] and len(names) >= 3
    assert re.search(r"^\*\*.+\.\*\*$", found, re.MULTILINE), "the verdict stands below it"


def metrics(seeds: int) -> dict[str, Any]:
    def value(*values: float) -> dict[str, Any]:
        return {"mean": sum(values[:seeds]) / seeds, "per_seed": list(values[:seeds])}

    one = {
        "accuracy": value(0.8, 0.82, 0.84),
        "ece": value(0.01, 0.02, 0.03),
        "latency_ms": None,
        "parameters": {"mean": 28282, "per_seed": [28282]},
        "bytes": {"mean": 114822, "per_seed": [114822]},
    }
    student = {**one, "agreement": value(0.9, 0.9, 0.9), "kl": value(0.1, 0.1, 0.1)}
    return {
        "models": {"teacher": one, "alone": student, "kd": student, "distilled": student},
        "arms": ["kd"],
        "seeds": list(range(seeds)),
        "verdict": "It helped.",
    }


def test_the_script_writes_the_table_once(script, tmp_path):
    page, run = tmp_path / "page.md", tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps(metrics(3)))
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    assert script.main([str(run), str(page)]) == 0
    first = page.read_text()
    # t with 2 degrees of freedom: 4.3027 x 0.02 / sqrt(3) = 0.0497
    assert "| `kd` | 82.0 % ± 5.0 | 90.0 % | 0.100 | 0.020 | 28,282 | 114.8 kB | - |" in first
    assert "| `teacher` | 82.0 % ± 5.0 | - | - | 0.020 |" in first
    assert first.startswith("before\n") and first.endswith("\nafter\n") and "old" not in first
    assert "**It helped.**" in first
    assert script.main([str(run), str(page)]) == 0
    assert page.read_text() == first


def test_one_seed_has_no_interval(script):
    assert "±" not in script.table(metrics(1))


def test_the_script_refuses_in_words(script, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("no markers")
    assert script.main([str(tmp_path / "none"), str(page)]) == 2
    assert "metrics.json does not exist" in capsys.readouterr().err
    with pytest.raises(UserError, match="no place for the table"):
        script.placed("no markers", "table")
    assert page.read_text() == "no markers"
