"""Paths that people give: whatever the system says of them reaches the person as words, and none is opened blindly."""

from __future__ import annotations

import errno
import os
import pwd
import re
import sys
from pathlib import Path

import pytest

from stillroom import files, paths
from stillroom.cli.app import main
from stillroom.data.table import open_source
from stillroom.errors import DataError, ModelError, StoreError, UserError
from stillroom.models.bundle import load
from stillroom.store import Store

LONG = "n" * 256  # one byte more than a name may have


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


# --- looking -------------------------------------------------------------------------------------------------


def test_looking_answers_as_pathlib_does_where_that_answers(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    for name in (".", "file", "link", "nowhere", "loop", "absent", "file/below"):
        path = tmp_path / name
        assert paths.is_file(path) == path.is_file(), name
        assert paths.is_folder(path) == path.is_dir(), name
        assert paths.exists(path) == (path.is_file() or path.is_dir()), name


@pytest.mark.parametrize("look", [paths.is_file, paths.is_folder, paths.exists])
def test_what_pathlib_raises_is_told_in_words(look, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="File name too long"):
        (tmp_path / LONG).is_file()
    with pytest.raises(UserError, match=r"the name is too long.*255 bytes"):
        look(tmp_path / LONG)

    def denied(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(DataError, match=r"Cannot read .*secret: permission was denied.*who owns it"):
        look(tmp_path / "secret", DataError)


def test_a_long_name_is_cut_in_the_middle():
    assert paths.shorten(Path("a" * 200)) == "a" * 200
    assert paths.shorten(Path("a" * 5000 + "z")) == "a" * 120 + "..." + "a" * 119 + "z"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "my.yaml", "--out", LONG),
        ("data", "show", f"npz:{LONG}"),
        ("data", "show", f"text:{LONG}"),
        ("data", "show", f"table:{LONG}.csv"),
        ("data", "show", f"mnist:{LONG}"),
        ("data", "show", f"images:{LONG}"),
        ("check", LONG),
        ("report", LONG),
        ("evaluate", LONG),
        ("mine", LONG),
        ("export", LONG),
        ("predict", LONG, "x.npy"),
        ("store", "inspect", LONG),
        ("store", "list", LONG),
    ],
    ids=lambda words: " ".join(words)[:20],
)
def test_a_name_that_is_too_long_is_the_persons_to_mend(words, command):
    Path("my.yaml").write_text(
        "data: {use: digits, train: 40}\nteacher: {model: net, train: {steps: 1}}\nstudent: {model: net}\n"
        "objectives: [{use: kd}]\n"
    )
    code, out, err = command(*words)
    assert (code, out) == (2, "") and "name is too long" in err, err
    assert not Path("cache", "teachers").exists(), "nothing is trained for a place that cannot be"


# --- home ------------------------------------------------------------------------------------------------------


def test_a_home_that_nobody_has(monkeypatch):
    with pytest.raises(UserError, match=r"'~nosuch/x'; this machine knows no home of ~nosuch"):
        paths.expand("~nosuch/x")
    monkeypatch.setenv("HOME", "/some/where")
    assert paths.expand("~/x") == Path("/some/where/x")
    assert paths.expand("x/~") == Path("x/~")
    for use in ("npz", "table", "text", "images", "mnist", "fashion-mnist"):
        with pytest.raises(DataError, match="knows no home of ~nosuch"):
            open_source(use, path="~nosuch/x.csv")
    with pytest.raises(ModelError, match="knows no home of ~nosuch"):
        load("~nosuch/x")


def test_a_user_without_a_name_needs_a_cache_of_its_own(monkeypatch, tmp_path):
    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("STILLROOM_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UserError, match=r"no place for the cache.*HOME is not set.*Set STILLROOM_CACHE to a folder"):
        files.cache_folder()
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path


# --- empty, and no text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_path_is_not_the_folder_of_now(given):
    with pytest.raises(UserError, match="'path' is empty"):
        paths.expand(given, "'path'")
    with pytest.raises(DataError, match="'path' is empty"):
        open_source("npz", path=given)
    with pytest.raises(StoreError, match="is empty"):
        Store.open(given)


def test_an_empty_cache_variable_is_refused(monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", "")
    with pytest.raises(UserError, match=r"STILLROOM_CACHE is empty"):
        files.cache_folder()


@pytest.mark.parametrize("words", [("new", "images", "--out", ""), ("new", ""), ("run", "x.yaml", "--out=")])
def test_an_empty_argument_is_refused_before_anything_is_written(words, command, tmp_path):
    code, out, err = command(*words)
    assert (code, out) == (2, "") and "An argument is empty" in err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_text_is_refused_at_the_door(command, tmp_path):
    code, out, err = command("run", "x.yaml", "--out", "runs/s\udc80")
    assert (code, out) == (2, "") and r"not text in UTF-8: got 'runs/s\x80'" in err
    assert list(tmp_path.iterdir()) == []
    for given in ("s\udc80", "\ud800", "a\0b"):
        with pytest.raises(UserError, match="not text in UTF-8"):
            paths.expand(given)
    assert paths.expand("本/ñ b") == Path("本/ñ b")


def test_a_class_whose_folder_is_no_text_is_refused(tmp_path):
    for name in (b"one", b"t\xffo"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), name))
    with pytest.raises(DataError, match=r"The folder of a class is not text in UTF-8.*t\\xffo"):
        open_source("images", path=tmp_path)


# --- remedies ------------------------------------------------------------------------------------------------------

CODES = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS, errno.ENOTDIR, errno.EEXIST]
CODES += [errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_the_remedy_names_what_chooses_the_place(code, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    inside = str(files.refused(tmp_path / "cache" / "teachers" / "a", OSError(code, "why")))
    outside = str(files.refused(tmp_path / "runs" / "a", OSError(code, "why")))
    assert "set STILLROOM_CACHE to another folder" in inside and "--out" not in inside
    assert "choose another folder with --out" in outside and "STILLROOM_CACHE" not in outside


@pytest.mark.parametrize("kind", ["a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_found_out_before_the_teacher_is_trained(
    kind, command, tmp_path, monkeypatch
):
    place = Path("/proc/cache") if kind == "read-only" else tmp_path / "cache"
    if kind == "a file":
        place.write_text("not a folder")
    monkeypatch.setenv("STILLROOM_CACHE", str(place))
    Path("my.yaml").write_text(
        "data: {use: digits, train: 40}\nteacher: {model: net, hidden: 4, train: {steps: 1}}\n"
        "student: {model: net, hidden: 4}\nobjectives: [{use: kd}]\ntrain: {steps: 1}\nseeds: [0]\n"
    )
    for word in ("run", "record"):
        code, _, err = command(word, "my.yaml", "--quiet", "--out", "run")
        assert code == 2 and "set STILLROOM_CACHE to another folder" in err and "--out" not in err, err
        assert not Path("run", "teacher").exists()


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text("{}")

    def denied(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StoreError, match="permission was denied") as told:
        files.read_json(tmp_path / "manifest.json")
    assert "JSON" not in str(told.value) and "Restore" not in str(told.value)


def test_a_shard_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    from stillroom.store import shards

    (tmp_path / "s.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="damaged"):
        shards.read_shard(tmp_path / "s.parquet", ["example"])

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shards.pq, "ParquetFile", denied)
    with pytest.raises(StoreError, match="permission was denied") as told:
        shards.read_shard(tmp_path / "s.parquet", ["example"])
    assert not re.search("damaged|delete", str(told.value))
