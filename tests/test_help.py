"""What a person reads of the command line without running anything: help, versions, usage errors, completion."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

import stillroom
from stillroom.cli import main, runs
from stillroom.cli.app import app


def all_words(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    group = group or get_command(app)
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from all_words(command, (*words, name))


@pytest.fixture
def said(monkeypatch, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


PYTHON = re.compile(
    r"<[^>]*>|\b(list|tuple)\[|\bPath\b|\bstr\b|\bint range\b|INTEGER|TEXT|FLOAT|\[\[|\{|\.\.\.\]\.\.\."
)


@pytest.mark.parametrize("words", list(all_words()), ids=" ".join)
def test_no_help_shows_a_python_type_or_a_sentence_cut_short(said, words):
    code, text, errors = said(*words, "--help")
    assert (code, errors) == (0, "")
    assert not (found := PYTHON.findall(text)), found
    commands = text.partition("Commands:\n")[2]
    assert "..." not in commands, "a summary is cut"
    assert all(line.rstrip().endswith(".") for line in commands.partition("\n\n")[0].splitlines() if line)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_an_option_too(said, option):
    assert said(option) == (0, f"stillroom {stillroom.__version__}\n", "")


def test_completion_is_offered(said):
    assert "--install-completion" in said("--help")[1] and "--show-completion" in said("--help")[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--verison"], "No such option: --verison"),
        (["run"], "Missing argument 'RECIPE'"),
        (["runn"], "No such command 'runn'"),
        (["check", "a.yaml", "more"], "more"),
    ],
)
def test_a_usage_error_says_a_thing_once(said, words, told):
    code, out, errors = said(*words)
    assert (code, out) == (2, "")
    assert told in errors and "Given:" not in errors


def test_a_value_that_does_not_fit_is_shown(said):
    code, _, errors = said("run", "a.yaml", "--jobs", "many")
    assert code == 2 and "'--jobs'" in errors and "--jobs many" in errors


def test_the_sources_are_listed_with_their_defaults_and_without_torch():
    code = (
        "import sys; sys.argv = ['stillroom', 'data', 'list']\nfrom stillroom.cli import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("False\n"), done.stderr
    assert re.search(r"^images +path, size=32, ", done.stdout, re.MULTILINE)


def test_options_read_from_a_file_are_those_of_the_loader():
    import inspect

    from stillroom.data.table import SOURCES, options_of, written_options

    for name in SOURCES:
        real, read = options_of(name), written_options(name)
        assert list(read) == list(real)
        assert [one for one, default in read.items() if default is None] == [
            one for one, parameter in real.items() if parameter.default is inspect.Parameter.empty
        ]


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Stopped"), (signal.SIGTERM, "Terminated")])
def test_whoever_stops_it_reads_one_word_and_scripts_a_code_as_shells_count(said, monkeypatch, number, word):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(runs, "shipped", lambda: os.kill(os.getpid(), number))
    code, out, errors = said("new")
    assert (code, out) == (128 + number, "")
    assert errors == f"{word}. What was finished is kept; run the same command again to go on.\n"
    assert signal.getsignal(signal.SIGTERM) is before
