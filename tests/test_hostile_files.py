"""Files that would hang, fill the memory or steer a terminal: each is answered in words, at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom import errors, files
from stillroom.cli import screen
from stillroom.cli.app import main
from stillroom.data.leaving_out import examples_in
from stillroom.data.table import open_source
from stillroom.data.text_tables import read_rows
from stillroom.errors import DataError, ModelError, StoreError, UserError
from stillroom.models.bundle import read_config
from stillroom.recipe import read_recipe
from stillroom.report import compare, read_metrics
from stillroom.terminal import visible

RECIPE = (
    "data: {{use: npz, path: {data}}}\nteacher: {{model: net, hidden: 4, train: {{steps: 1}}}}\n"
    "student: {{model: net, hidden: 4}}\nobjectives: [{{use: labels}}, {{use: kd}}]\ntrain: {{steps: 1}}\n"
)


@contextmanager
def soon(seconds: int = 10):
    """Raise TimeoutError where something waits for ever."""

    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run ``stillroom ...`` in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def recipe(command, tmp_path) -> Path:
    """A small recipe on 60 rows in the folder of now."""
    drawn = np.random.default_rng(0)
    np.savez("d.npz", x=drawn.integers(0, 255, (60, 4, 4), dtype=np.uint8), y=np.arange(60) % 3)
    Path("my.yaml").write_text(RECIPE.format(data="d.npz"))
    return Path("my.yaml")


# --- what is no ordinary file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("x.npz", lambda path: open_source("npz", path=path)),
        ("x.csv", lambda path: open_source("table", path=path)),
        ("x.npy", lambda path: open_source("table", path=path)),
        ("x.parquet", lambda path: open_source("table", path=path)),
        ("x.csv", lambda path: open_source("text", path=path)),
        ("x.jsonl", lambda path: open_source("text", path=path)),
        ("x.csv.gz", lambda path: open_source("text", path=path)),
        ("x.json", examples_in),
        ("x.json", files.read_json),
        ("x.yaml", read_recipe),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_pipe_and_a_socket_are_not_waited_for(name, read, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    if kind == "pipe":
        os.mkfifo(name)
    words = {"pipe": "a named pipe", "socket": "a socket"}[kind]
    with soon(), socket.socket(socket.AF_UNIX) as listening:
        if kind == "socket":
            listening.bind(name)
        with pytest.raises(UserError, match=words):
            read(Path(name))


def test_a_device_without_an_end_is_not_read():
    with soon():
        for read in (examples_in, read_recipe, files.read_json):
            with pytest.raises(UserError, match=r"/dev/zero: got a device"):
                read(Path("/dev/zero"))


def test_a_folder_is_no_file(tmp_path):
    for read in (examples_in, read_recipe, files.read_json):
        with pytest.raises(UserError, match="got a folder"):
            read(tmp_path)


def test_predict_names_what_a_pipe_is(command):
    os.mkfifo("x.npy")
    from stillroom.cli.reading import rows_of

    with soon(), pytest.raises(DataError, match="a named pipe"):
        rows_of([Path("x.npy")], {"dtype": "float32", "shape": [2]})


def test_json_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "big.json", "wb") as stream:
        stream.truncate(files.LARGEST + 1)
    with pytest.raises(StoreError, match=f"too large: got {files.LARGEST + 1:,} bytes"):
        files.read_json(tmp_path / "big.json")


# --- JSON ------------------------------------------------------------------------------------------------------

MONSTERS = {"deep": "[" * 100_000, "closed": "[" * 101 + "]" * 101, "digits": "1" * 5000}


def test_json_has_bounds():
    assert files.parse_json("[" * 100 + "]" * 100) is not None
    assert files.parse_json('{"a": [1, {"b": []}]}') == {"a": [1, {"b": []}]}
    assert files.parse_json("9" * 4000) == 10**4000 - 1
    for name, text in MONSTERS.items():
        with pytest.raises(ValueError, match="thousands of digits" if name == "digits" else "deeper than 100"):
            files.parse_json(text)
    assert np.isnan(files.parse_json("NaN")), "a line of data may say so"
    with pytest.raises(ValueError, match="holds NaN"):
        files.parse_json("[NaN]", strict=True)


@pytest.mark.parametrize("text", MONSTERS.values(), ids=MONSTERS)
def test_every_reader_of_json_has_these_bounds(text, tmp_path):
    for name in ("manifest.json", "metrics.json", "config.json", "plan.json", "done.json", "begun.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "x.jsonl").write_text(f'{{"text": {text}}}\n')
    from stillroom.models.hugging_face import _read_config
    from stillroom.store import Store

    for read, kind in ((Store.open, StoreError), (read_metrics, StoreError), (read_config, ModelError)):
        with pytest.raises(kind, match="nested deeper|thousands of digits"):
            read(tmp_path)
    with pytest.raises(ModelError, match="nested deeper|thousands of digits"):
        _read_config(tmp_path)
    with pytest.raises(DataError, match=r"line 1 is not JSON \((nested deeper|a number of thousands)"):
        list(read_rows(tmp_path / "x.jsonl"))
    assert files.committed(tmp_path, "inputs") is None
    assert files.read_json_or(tmp_path / "plan.json", "nothing") == "nothing"


def test_half_a_character_in_a_line_becomes_a_whole_one(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a\\ud800b", "label": "\\udc80"}\n')
    ((_, row),) = read_rows(tmp_path / "x.jsonl")
    assert row == {"text": "a?b", "label": "?"}


@pytest.mark.parametrize(
    "content",
    [
        {"verdict": 1, "models": {"teacher": {"score": None}}},
        {"verdict": "v", "arms": ["distilled"], "models": {"distilled": {"score": 3, "score_name": "accuracy"}}},
        {"verdict": "v", "arms": ["distilled"], "models": {"distilled": {"score": {"mean": ""}, "score_name": "x"}}},
        {"models": {"distilled": {"score": {"mean": 1.0}, "score_name": "accuracy"}}},
        {"verdict": "v", "arms": 3, "models": {"distilled": {"score": None, "score_name": "accuracy"}}},
        [],
        None,
    ],
)
def test_metrics_of_another_shape_are_refused_by_report(content, command):
    Path("run").mkdir()
    Path("run", "metrics.json").write_text(json.dumps(content))
    code, out, err = command("report", "run")
    assert (code, out) == (2, "") and "not the metrics of a run of Stillroom" in err, err


def test_metrics_of_another_shape_are_refused_by_compare(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        content = {"models": {"distilled": {"score": {"mean": 1.0}}}, "seeds": 3, "data": {}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not the metrics of a run of Stillroom"):
        compare([tmp_path / "a", tmp_path / "b"])


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 1.5 GiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libx.so: cannot allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
        RuntimeError("std::bad_alloc"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_memory_that_ran_out_is_recognised_whoever_says_so(error):
    assert errors.out_of_memory(error)
    with pytest.raises(ModelError, match=r"Not enough memory for the model: got .*\. Make it smaller\.$"):
        with errors.enough_memory("for the model", "Make it smaller.", ModelError):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ImportError("libx.so: cannot allocate memory in static TLS block"),
        ImportError("No module named 'onnx'"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("bad"),
        UserError("Not enough memory"),
        KeyError("out of memory"),
    ],
    ids=str,
)
def test_nothing_else_is_taken_for_it(error):
    assert not errors.out_of_memory(error)
    with pytest.raises(type(error)), errors.enough_memory("here", "Do."):
        raise error


def test_pytorchs_own_allocator_is_recognised():
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert errors.out_of_memory(real.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=type)
def test_data_that_does_not_fit_is_not_a_matter_of_the_batch(error, recipe, command, monkeypatch):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(np, "load", full)
    code, _, err = command("check", recipe)
    assert code == 2 and "d.npz does not fit into memory" in err and "fewer or smaller rows" in err
    assert "train.batch" not in err and "Save it again" not in err


def test_a_training_that_does_not_fit_names_the_batch(recipe, command, monkeypatch):
    from stillroom.pipeline import teaching

    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(teaching, "train", full)
    code, _, err = command("train", recipe, "--quiet")
    assert code == 2 and "Not enough memory for the task 'train teacher'" in err and "Lower train.batch" in err


def test_a_library_without_room_is_no_fault_of_stillroom(command, monkeypatch):
    def full(*_, **__):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("stillroom.recipe.read_recipe", full)
    code, _, err = command("check", "my.yaml")
    assert code == 2 and "Not enough memory" in err and "fault of Stillroom" not in err


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "permission was")])
def test_what_the_system_refuses_is_no_fault_of_stillroom(number, words, command, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("stillroom.recipe.read_recipe", refuse)
    code, _, err = command("check", "my.yaml")
    assert code == 2 and words in err and "/some/file" in err and "fault of Stillroom" not in err


# --- numbers that no machine can hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("student.hidden=900000000", "does not fit into memory: got 18,000,000,003 weights"),  # 20 x 9e8 + 3
        ("teacher.hidden=900000000", "does not fit into memory: got 18,000,000,003 weights"),
        ("student.hidden=1000000000000", "above 0, up to 1,000,000,000"),
        ("record.views=1000000000", "record.views: must be at most 1,000,000, got 1000000000"),
        ("train.batch=1000000000", "train.batch: must be at most 1,048,576, got 1000000000"),
        ("train.batch=500000", "would repeat its rows many times: got train.batch: 500,000 from 49 rows"),
        ("teacher.train.batch=500000", "A batch of 'teacher' would repeat its rows"),
        ("train.steps=1000000000000", "must be at most 1,000,000,000"),
        ("train.epochs=1e300", "train.epochs: must be at most"),
        (f"seeds={list(range(3000))}", "seeds: must have at most 1,000 entries, got a list of 3,000"),
        ("seeds=[99999999999999999999]", "must be below 9,223,372,036,854,775,808"),
        ("data.path=''", "'path' is empty"),
        ("data.leave_out=''", "'leave_out' is empty"),
    ],
    ids=lambda value: value[:30],
)
def test_a_number_beyond_every_machine_is_told_by_check(change, words, recipe, command, monkeypatch):
    monkeypatch.setattr("stillroom.pipeline.space.whole_memory", lambda: 8 * 2**30)
    start = time.process_time()
    code, _, err = command("check", recipe, "--set", change)
    assert code == 2 and words in err, err
    assert time.process_time() - start < 10


def test_the_largest_numbers_that_are_allowed_pass(recipe, command):
    code, out, err = command("check", recipe, "--set", "seeds=[9223372036854775807]", "--set", "train.batch=1024")
    assert code == 0 and "is good" in out, err


def test_views_are_counted_against_the_disk_before_they_are_listed(recipe, command, monkeypatch):
    """60 rows of which 48 or 49 train: a million views are some 49 million rows of 27 bytes, above a disk of 1 GB."""
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("stillroom.pipeline.space.shutil.disk_usage", lambda _: usage(10**9, 0, 10**9))
    for words in (("check", recipe), ("run", recipe, "--plan")):
        code, _, err = command(*words, "--set", "record.views=1000000")
        assert code == 2 and "record.views: 1,000,000, which makes 49,000,011 rows of at least 27 bytes" in err, err
    code, out, err = command("check", recipe, "--set", "record.views=1000")
    assert code == 0, err


def test_an_estimate_of_many_views_is_that_of_few_many_times(recipe):
    from stillroom.pipeline.recipes import open_data
    from stillroom.record import estimate, record

    source = open_data(read_recipe(recipe).data, 2000)
    asked = []

    def teacher(batch):
        asked.append(len(batch["id"]))
        return {"logits": torch.zeros(len(batch["id"]), 3)}

    once, often = estimate(teacher, source, views=1), estimate(teacher, source, views=2000)
    train = len(source.splits["train"])
    assert often.rows == once.rows + 1999 * train
    assert often.bytes == pytest.approx(once.bytes * often.rows / once.rows)
    assert max(asked) <= 32
    assert len(record(teacher, source, Path("store"), views=40)) == estimate(teacher, source, views=40).rows


def test_a_cache_with_too_little_room_is_found_out_before_the_teacher_is_trained(recipe, command, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("stillroom.pipeline.space.shutil.disk_usage", lambda _: usage(10**12, 10**12 - 100, 100))
    code, _, err = command("run", recipe, "--quiet", "--jobs", 1, "--out", "run")
    assert code == 2 and "The shared cache has too little room" in err and "set STILLROOM_CACHE" in err, err
    assert not Path("run").exists()


# --- terminal -------------------------------------------------------------------------------------------------------


def test_what_steers_a_terminal_is_written_out():
    assert visible("plain, 香 é\tand\nso on") == "plain, 香 é\tand\nso on"
    assert visible("\x1b]0;title\x07\x1b[31m\r\x9b\x7f") == r"\x1b]0;title\x07\x1b[31m\x0d\x9b\x7f"
    assert visible("a\u202eb\u2066c\u2028") == r"a\u202eb\u2066c\u2028"
    assert visible("s\udc80\ud800") == r"s\x80\ud800"


def test_names_from_files_do_not_steer_the_terminal(recipe, command):
    known = dict(np.load("d.npz"))
    np.savez("odd.npz", **known, classes=np.array(["\x1b]0;title\x07", "\x1b[31mred", "[bold]b[/bold]"]))
    code, out, _ = command("data", "show", "npz:odd.npz")
    assert code == 0 and "\x1b" not in out and "\x07" not in out
    assert r"\x1b]0;title\x07, \x1b[31mred, [bold]b[/bold]" in out


@pytest.mark.parametrize("words", [("check", "\x1b[31m.yaml"), ("check", "x", "--\x1b[31m"), ("new", "\x1b[31m")])
def test_errors_do_not_steer_the_terminal(words, command):
    code, out, err = command(*words)
    assert code == 2 and r"\x1b[31m" in err and "\x1b" not in out + err


def test_tables_and_progress_show_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    screen.show_table(["[red]a\x1b[0m"], [["[bold]x[/bold]\x1b]0;t\x07"]], "[u]title\x1b")
    out = capsys.readouterr().out
    for text in (r"[red]a\x1b[0m", r"[bold]x[/bold]\x1b]0;t\x07", r"[u]title\x1b"):
        assert text in out
    assert "\x1b" not in out
