"""Whatever a person gives by mistake is answered in words: exit code 2, no traceback, nothing half-written.

Every case says what must be in its message: what failed, what was given, and what is allowed or to be done.
``pytest tests/test_bad_input.py -s -k list`` prints all messages.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import stillroom
from stillroom import files
from stillroom.cli import app as cli
from stillroom.errors import UserError
from stillroom.pipeline.run import locked

SOURCE = Path(__file__).parents[1] / "src" / "stillroom"
RECIPE = """\
data: {{use: npz, path: "{data}", labels: 40}}
teacher: {{model: net, hidden: 12, train: {{steps: 6, batch: 32}}}}
student: {{model: net, hidden: 8}}
objectives: [{{use: labels, weight: 0.1}}, {{use: kd, weight: 0.9}}]
train: {{steps: 6, batch: {{labelled: 16, transfer: 16}}}}
arms: {{kd: {{}}}}
seeds: [0]
trials: [1]
jobs: 1
"""


def images(rows: int = 240, classes: int = 4, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(7)
    labels = np.arange(rows) % classes
    pixels = numbers.integers(0, 120, (rows, 1, side, side)) + 30 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels


class Small(nn.Module):
    """A network of one's own on vectors of six numbers."""

    def __init__(self, classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(width, 5)
        self.last = nn.Linear(5, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(inputs)))


def vectors(rows: int = 90, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1)), torch.arange(rows) % classes


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.astype(np.uint8).tobytes()


@dataclass
class World:
    """A finished run that is only read, and a fresh folder for each case."""

    done: Path
    data: Path
    here: Path = Path()

    def recipe(self, *changes: tuple[str, str], name: str = "my.yaml") -> Path:
        text = RECIPE.format(data=self.data)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.here / name
        path.write_text(text, encoding="utf-8")
        return path

    def npz(self, **columns: Any) -> Path:
        path = self.here / "mine.npz"
        np.savez(path, **columns)
        return path

    def store(self) -> Path:
        """A copy of the recorded knowledge, to be harmed."""
        place = self.here / "knowledge"
        shutil.copytree((self.done / "knowledge").resolve(), place)
        return place

    def copy(self) -> Path:
        place = self.here / "run"
        shutil.copytree(self.done, place, symlinks=True)
        return place


def command(*arguments: object) -> tuple[int, str, str]:
    """Run the command line here; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["stillroom", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("main must exit")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("bad")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLROOM_CACHE", str(root / "cache"))
        pixels, labels = images()
        np.savez(root / "data.npz", inputs=pixels, labels=labels)
        world = World(root / "done", root / "data.npz", root)
        code, _, told = command("run", world.recipe(), "--out", world.done, "--quiet")
        assert code == 0, told
        yield world


@pytest.fixture
def world(finished: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(finished.done, finished.data, tmp_path)


Arguments = list[object]
Case = tuple[Callable[[World], Arguments], tuple[str, ...]]
CASES: dict[str, Case] = {}


def case(name: str, make: Callable[[World], Arguments], *phrases: str) -> None:
    assert name not in CASES
    CASES[name] = (make, phrases)


# --- the words on the line -----------------------------------------------------------------------------------

case("unknown command", lambda w: ["runn", w.recipe()], "runn", "run")
case("unknown option", lambda w: ["run", w.recipe(), "--quite"], "--quite", "--quiet")
case("missing argument", lambda w: ["run"], "RECIPE", "Missing")
case("extra argument", lambda w: ["check", w.recipe(), "more"], "more", "unexpected")
case("jobs of nothing", lambda w: ["run", w.recipe(), "--jobs", "0"], "--jobs 0", "greater than or equal to 1")
case("jobs in words", lambda w: ["run", w.recipe(), "--jobs", "many"], "--jobs many", "valid integer")
case("unknown shipped recipe", lambda w: ["new", "imagse"], "imagse", "images")


def _written(w: World) -> Arguments:
    (w.here / "mine.yaml").write_text("mine")
    return ["new", "images", "mine.yaml"]


case("new over a file", _written, "mine.yaml", "exists already", "Name another file")

# --- recipes ------------------------------------------------------------------------------------------------

case(
    "several mistakes",
    lambda w: [
        "check",
        w.recipe(("use: kd,", "use: kdd,"), ("hidden: 8", "hiden: 8"), ("seeds: [0]", "seeds: [0, 0]")),
    ],
    "3 mistakes",
    "kdd",
    "'kd'",
    "hiden",
    "hidden",
    "seeds",
    "line 4",
    "line 3",
    "line 7",
)
case(
    "unknown loss",
    lambda w: ["check", w.recipe(("use: kd,", "use: knowledge,"))],
    "knowledge",
    "allowed",
    "attention_transfer",
)
case(
    "unknown model",
    lambda w: ["check", w.recipe(("student: {model: net", "student: {model: nett"))],
    "nett",
    "'net'",
    "line 3",
)
case("unknown data", lambda w: ["check", w.recipe(("use: npz", "use: npy"))], "npy", "npz", "line 1")
case(
    "unknown tap",
    lambda w: ["check", w.recipe(("{use: kd, weight: 0.9}", "{use: hint, student: hiden, teacher: hidden}"))],
    "hiden",
    "hidden",
    "line 4",
)
case(
    "an option out of range",
    lambda w: ["check", w.recipe(("{use: kd, weight: 0.9}", "{use: kd, temperature: -2}"))],
    "temperature",
    "-2",
    "above 0",
)
case(
    "steps and epochs",
    lambda w: ["check", w.recipe(("train: {steps: 6, batch: {", "train: {steps: 6, epochs: 2, batch: {"))],
    "steps",
    "epochs",
    "one",
)
case("negative views", lambda w: ["check", w.recipe(("jobs: 1", "record: {views: -1}"))], "views", "-1", "at least 1")
case(
    "no teacher for kd",
    lambda w: ["check", w.recipe((RECIPE.splitlines()[1].replace("{{", "{").replace("}}", "}") + "\n", ""))],
    "kd reads a teacher",
    "add 'teacher:'",
)
case("--set of nothing there", lambda w: ["check", w.recipe(), "--set", "train.step=3"], "train.step", "steps")
case("--set without a value", lambda w: ["check", w.recipe(), "--set", "train.steps"], "train.steps", "=")
case("--set of a wrong value", lambda w: ["check", w.recipe(), "--set", "train.lr=fast"], "train.lr", "fast", "number")
case("missing recipe", lambda w: ["run", "none.yaml"], "none.yaml", "does not exist", "stillroom new")
case("recipe is a folder", lambda w: ["run", w.here], "a folder", "name a file in it")


def _binary(w: World) -> Arguments:
    (w.here / "b.yaml").write_bytes(bytes(range(256)))
    return ["run", "b.yaml"]


def _text(text: str) -> Callable[[World], Arguments]:
    def make(w: World) -> Arguments:
        (w.here / "t.yaml").write_text(text, encoding="utf-8")
        return ["check", "t.yaml"]

    return make


case("recipe is binary", _binary, "b.yaml", "not UTF-8", "text file")
case("empty recipe", _text(""), "t.yaml", "data", "student")
case("not YAML", _text("data: [npz\nstudent: {"), "t.yaml", "not YAML", "line")
case(
    "aliases",
    _text("data: &a {use: npz, path: x}\nstudent: *a\n"),
    "anchors and aliases",
    "line 1",
    "write the value out",
)
case("tags", _text("data: !!python/object:os.system {use: npz}\n"), "tags", "write the plain value")
case("the same key twice", _text("data: {use: npz, path: a}\nseeds: [0]\nseeds: [1]\n"), "given twice", "line 2")
case(
    "stages",
    lambda w: ["run", w.recipe(("jobs: 1", "stages: [{train: {steps: 5}}, {student: {model: net}}]"))],
    "last stage",
    "Add a last stage without 'student'",
)

# --- shapes, classes and labels --------------------------------------------------------------------------------

case(
    "shapes that do not fit",
    lambda w: [
        "check",
        w.recipe(("{use: kd, weight: 0.9}", "{use: hint, student: hidden, teacher: hidden, connector: none}")),
    ],
    "(4, 8)",
    "(4, 12)",
    "connector",
)
case(
    "no shape fits a relation",
    lambda w: [
        "check",
        w.recipe(("{use: kd, weight: 0.9}", "{use: attention_transfer, student: hidden, teacher: hidden}")),
    ],
    "attention_transfer",
    "(4, 8)",
    "(4, 12)",
    "arm 'kd'",
)
case(
    "more labels than rows",
    lambda w: ["run", w.recipe(("labels: 40", "labels: 100000"))],
    "100000",
    "labels",
    "Lower data.labels",
)


def _other_classes(w: World) -> Arguments:
    pixels, labels = images(classes=3)
    path = w.npz(inputs=pixels, labels=labels)
    recipe = w.recipe(
        (str(w.data), str(path)), ("model: net, hidden: 12, train: {steps: 6, batch: 32}", f'load: "{w.done}/teacher"')
    )
    return ["run", recipe, "--out", "out", "--quiet"]


case("a teacher of other classes", _other_classes, "4 classes", "3 classes", "done/teacher")


def _npz(**change: Any) -> Callable[[World], Arguments]:
    def make(w: World) -> Arguments:
        pixels, labels = images()
        columns = {"inputs": pixels, "labels": labels} | {name: value(pixels, labels) for name, value in change.items()}
        return ["run", w.recipe((str(w.data), str(w.npz(**columns)))), "--out", "out", "--quiet"]

    return make


def _tiny(w: World) -> Path:
    pixels, labels = images(4)
    return w.npz(inputs=pixels, labels=labels)


def _one(values: np.ndarray, at: Any, value: Any) -> np.ndarray:
    values = values.copy()
    values[at] = value
    return values


case("a label below -1", _npz(labels=lambda x, y: _one(y, 5, -7)), "labels", "-7", "-1")
case("labels with fractions", _npz(labels=lambda x, y: y + 0.5), "labels", "whole numbers")
case("fewer labels than rows", _npz(labels=lambda x, y: y[:-3]), "240", "237")
case(
    "NaN in the data",
    _npz(inputs=lambda x, y: _one(x[:, 0, 0].astype(np.float32), (9, 2), np.nan)),
    "NaN",
    "9",
    "finite numbers",
)
case("one class alone", _npz(labels=lambda x, y: y * 0), "one class", "at least 2")
case("too few rows to split", _npz(inputs=lambda x, y: x[:2], labels=lambda x, y: y[:2]), "labels", "1 to 2")
case(
    "a split without rows",
    lambda w: ["run", w.recipe((str(w.data), str(_tiny(w))), (", labels: 40", "")), "--out", "out"],
    "rows",
    "at least 1",
)
case(
    "no rows at all",
    _npz(inputs=lambda x, y: x[:0], labels=lambda x, y: y[:0]),
    "inputs",
    "(0, 1, 8, 8)",
    "one row an example",
)
case("no labels", _npz(labels=lambda x, y: y * 0 - 1), "labels")

# --- training that cannot go on -----------------------------------------------------------------------------------

case(
    "a loss that is not finite",
    lambda w: [
        "run",
        w.recipe(
            ("batch: {labelled: 16, transfer: 16}", "batch: 16, optimizer: sgd, lr: 1.0e+30, checkpoint_every: 1")
        ),
        "--out",
        "out",
        "--quiet",
    ],
    "not finite at step",
    "examples",
    "last good checkpoint is step",
    "train.lr",
)


def _file_for_out(w: World) -> Arguments:
    (w.here / "out").write_text("a file")
    return ["run", w.recipe(), "--out", "out"]


def _locked(w: World) -> Arguments:
    (w.here / "out").mkdir()
    handle = os.open(w.here / "out" / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return ["run", w.recipe(), "--out", "out"]


case("out is a file", _file_for_out, "out", "file", "another")
case(
    "out may not be written",
    lambda w: ["run", w.recipe(), "--out", "/proc/stillroom-run"],
    "/proc/stillroom-run",
    "none can be made there",
    "--out",
)
case("another run is at work", _locked, "Another run", "out", "--out")
case(
    "train what does not fit",
    lambda w: [
        "train",
        w.recipe(("{use: kd, weight: 0.9}", "{use: mse_logits, student: hidden, teacher: logits}")),
        "--out",
        "out",
    ],
    "mse_logits",
    "(4, 8)",
    "(4, 4)",
)
case("unknown arm", lambda w: ["train", w.recipe(), "--arm", "kdd", "--out", "out"], "kdd", "'kd'", "alone")
case("unknown seed", lambda w: ["train", w.recipe(), "--seed", "5", "--out", "out"], "5", "seed", "0")
case(
    "nothing to record",
    lambda w: [
        "record",
        w.recipe(
            (RECIPE.splitlines()[1].replace("{{", "{").replace("}}", "}") + "\n", ""),
            ("objectives: [{use: labels, weight: 0.1}, {use: kd, weight: 0.9}]", "objectives: [{use: labels}]"),
            ("batch: {labelled: 16, transfer: 16}", "batch: 16"),
            ("arms: {kd: {}}", "arms: {plain: {}}"),
        ),
        "--out",
        "out",
    ],
    "no teacher",
    "Add 'teacher:'",
)

# --- data on the disk ---------------------------------------------------------------------------------------------


def _folder(w: World) -> Arguments:
    (w.here / "photos").mkdir()
    return ["data", "show", "images:photos"]


def _corrupt(w: World) -> Arguments:
    for name in ("cat", "dog"):
        (w.here / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), number).save(w.here / "photos" / name / f"{number}.png")
    (w.here / "photos" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return ["data", "show", "images:photos"]


def _idx(w: World) -> Arguments:
    pixels, labels = images(60)
    folder = w.here / "idx"
    folder.mkdir()
    for part in ("train", "t10k"):
        whole = idx(pixels[:, 0])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(whole[:-100] if part == "t10k" else whole)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return ["data", "show", "fashion-mnist:idx"]


def _zipped(w: World) -> Arguments:
    _idx(w)
    place = w.here / "idx" / "t10k-images-idx3-ubyte"
    place.with_suffix(".gz").write_bytes(gzip.compress(place.read_bytes())[:-20])
    place.unlink()
    return ["data", "show", "fashion-mnist:idx"]


def _garbage(w: World) -> Arguments:
    (w.here / "g.npz").write_bytes(b"PK\x03\x04 not really")
    return ["data", "show", "npz:g.npz"]


case("an empty folder of pictures", _folder, "photos", "no")
case("a corrupt picture", _corrupt, "3.png", "cannot")
case("a truncated IDX file", _idx, "t10k-images-idx3-ubyte", "bytes")
case("a truncated gzip", _zipped, "t10k-images-idx3-ubyte.gz")
case("a broken npz", _garbage, "g.npz")
case("a missing npz", lambda w: ["data", "show", "npz:none.npz"], "none.npz")
case(
    "a source that is not there",
    lambda w: ["data", "show", "fashion-mnits-sample"],
    "fashion-mnits-sample",
    "fashion-mnist-sample",
)
case("a path where none goes", lambda w: ["data", "show", "fashion-mnist-sample:here"], "takes no path", "here")
case("a source without its path", lambda w: ["data", "show", "images"], "images", "path")

# --- models, predictions, exports, reports ------------------------------------------------------------------------


def _array(shape: tuple[int, ...]) -> Callable[[World], Arguments]:
    def make(w: World) -> Arguments:
        np.save(w.here / "rows.npy", np.zeros(shape, np.uint8))
        return ["predict", w.done, "rows.npy", "--out", "p.csv"]

    return make


def _file(name: str, content: bytes) -> Callable[[World], Arguments]:
    def make(w: World) -> Arguments:
        (w.here / name).write_bytes(content)
        return ["predict", w.done, name, "--out", "p.csv"]

    return make


def _good_rows(w: World) -> str:
    np.save(w.here / "rows.npy", images(3)[0])
    return "rows.npy"


def _folder_for_file(w: World) -> Arguments:
    (w.here / "p.csv").mkdir()
    return ["predict", w.done, _good_rows(w), "--out", "p.csv"]


case("rows of another shape", _array((3, 9, 9)), "rows.npy", "(9, 9)", "(1, 8, 8)")
case("a single number", _array(()), "rows.npy", "(1, 8, 8)")
case("no rows in an array", _array((0, 8, 8)), "nothing to classify", "rows.npy")
case("an unknown kind of file", _file("notes.txt", b"hello"), "notes.txt", ".txt", ".png")
case("a missing file to predict", lambda w: ["predict", w.done, "no.png"], "no.png", "no such file")
case("a corrupt picture to predict", _file("bad.png", b"\x89PNG nothing"), "bad.png", "save it again")
case("a corrupt array to predict", _file("bad.npy", b"\x93NUMPY nothing"), "bad.npy", "numpy.save")
case(
    "an empty folder to predict", lambda w: [*_folder(w)[:0], "predict", w.done, w.here], "nothing to classify", ".png"
)
case("predictions over a folder", _folder_for_file, "p.csv", "folder is in its place")
case(
    "predictions where none may be written",
    lambda w: ["predict", w.done, _good_rows(w), "--out", "/proc/p.csv"],
    "/proc/p.csv",
)
case("no model there", lambda w: ["evaluate", "nowhere"], "nowhere", "bundle")
case("an unknown split", lambda w: ["evaluate", w.done, "--split", "tests"], "tests", "'test'")
case(
    "evaluate on other shapes",
    lambda w: ["evaluate", w.done, "--data", "fashion-mnist-sample"],
    "(1, 28, 28)",
    "(1, 8, 8)",
)
case("evaluate without data", lambda w: ["evaluate", w.done / "teacher"], "--data", "not a run folder")
case("export of nothing", lambda w: ["export", w.here, "--out", "out"], "bundle", "config.json")


def _pickle(w: World) -> Arguments:
    shutil.copytree(w.done / "teacher", w.here / "bundle")
    torch.save({"weight": torch.zeros(3)}, w.here / "bundle" / "model.safetensors")
    return ["evaluate", "bundle", "--data", f"npz:{w.data}"]


def _swapped(w: World) -> Arguments:
    shutil.copytree(w.done / "teacher", w.here / "bundle")
    shutil.copyfile(w.done / "arms" / "kd-0" / "model.safetensors", w.here / "bundle" / "model.safetensors")
    return ["evaluate", "bundle", "--data", f"npz:{w.data}"]


def _unfinished(w: World) -> Arguments:
    shutil.copytree(w.done, w.here / "unfinished", symlinks=True)
    (w.here / "unfinished" / "metrics.json").unlink()
    return ["report", w.done, w.here / "unfinished", "--out", "c.html"]


def _metrics(content: str) -> Callable[[World], Arguments]:
    def make(w: World) -> Arguments:
        (w.here / "other").mkdir()
        (w.here / "other" / "metrics.json").write_text(content)
        return ["report", "other"]

    return make


case("a pickle in the place of weights", _pickle, "model.safetensors", "pickle")
case("the weights of another model", _swapped, "model.safetensors")
case("a report of a foreign folder", lambda w: ["report", w.here], "metrics.json", "finished run", "stillroom run")
case("a report of broken metrics", _metrics("{"), "metrics.json", "JSON")
case("a report of other metrics", _metrics('{"accuracy": 0.9}'), "metrics.json", "models", "score")
case("a comparison with an unfinished run", _unfinished, "unfinished", "has not finished", "stillroom run")

# --- stores ---------------------------------------------------------------------------------------------------------


def _flip_end(w: World) -> Path:
    return _flip(w, part=3)


def _flip(w: World, part: int = 2) -> Path:
    place = w.store()
    shard = sorted(place.glob("*.parquet"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // part] ^= 1
    shard.write_bytes(bytes(content))
    return place


def _lost(w: World) -> Arguments:
    place = w.store()
    sorted(place.glob("*.parquet"))[0].unlink()
    return ["store", "verify", place]


def _from_store(w: World, data: Path, place: Path, use: str = "{use: kd, weight: 0.9}") -> Arguments:
    recipe = w.recipe(
        (str(w.data), str(data)),
        ("model: net, hidden: 12, train: {steps: 6, batch: 32}", f'store: "{place}"'),
        ("{use: kd, weight: 0.9}", use),
    )
    return ["run", recipe, "--out", "out", "--quiet"]


def _other_data(w: World) -> Arguments:
    pixels, labels = images()
    return _from_store(w, w.npz(inputs=pixels[::-1].copy(), labels=labels[::-1].copy()), w.store())


def _cut_manifest(w: World) -> Arguments:
    place = w.store()
    (place / "manifest.json").write_bytes((place / "manifest.json").read_bytes()[:200])
    return ["store", "inspect", place]


case(
    "a flipped byte, on verifying", lambda w: ["store", "verify", _flip(w)], "shard-00000.parquet", "record", "SHA-256"
)
case("a flipped byte, on training", lambda w: _from_store(w, w.data, _flip_end(w)), "shard-00000.parquet", "SHA-256")
case("a missing shard", _lost, "shard-00000.parquet", "missing")
case("a cut manifest", _cut_manifest, "manifest.json")
case("no store there", lambda w: ["store", "inspect", w.here], "not a store")
case("a store of other data", _other_data, "other", "knowledge")
case(
    "a store without a tap",
    lambda w: _from_store(w, w.data, w.store(), "{use: hint, student: hidden, teacher: hidden}"),
    "does not hold 'hidden'",
    "logits",
    "record",
)
case(
    "an option of a student twice",
    lambda w: [
        *("evaluate", "net:hidden=8,hidden=9", "--data", f"npz:{w.data}"),
        *("--teachers", w.done / "teacher", w.done / "export" / "student"),
    ],
    "'hidden' is given twice",
    "net:hidden=8,hidden=9",
    "once",
)
case("prune without a rule", lambda w: ["store", "prune", w.here, "--yes"], "keep", "older")
case("prune of a missing folder", lambda w: ["store", "prune", "nowhere", "--keep", "0", "--yes"], "nowhere")
case(
    "store export where none may be written",
    lambda w: ["store", "export", w.store(), "/proc/k.parquet"],
    "/proc/k.parquet",
    "none can be made",
)


# --- the cases, run ---------------------------------------------------------------------------------------------------

TOLD: dict[str, str] = {}


def plain(text: str, w: World) -> str:
    """A message in one line, without the places of this machine."""
    for place, name in ((w.here, "HERE"), (w.done, "DONE"), (w.data, "DATA")):
        text = text.replace(str(place), name)
    return " ".join(text.split())


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_in_words(world: World, name: str) -> None:
    make, phrases = CASES[name]
    arguments = make(world)
    before = contents(world.here)
    code, out, told = command(*arguments)
    TOLD[name] = plain(told, world)
    assert code == 2, out + told
    assert "Traceback" not in out + told and "fault of Stillroom" not in told
    for phrase in phrases:
        assert phrase.lower() in told.lower(), told
    left = {path for path in contents(world.here) - before if not path.startswith("out")}
    assert not left, f"half-written: {left}"
    assert not [path for path in contents(world.here) if path.endswith(".part")]
    assert not (world.here / "out" / "metrics.json").exists() and not (world.here / "out" / "report.html").exists()


# --- from Python ------------------------------------------------------------------------------------------------------


def _distill(**change: Any) -> Any:
    options = {
        "teacher": Small(),
        "student": Small,
        "data": vectors(),
        "objectives": ["labels", "kd"],
        "steps": 2,
    } | change
    options.setdefault("out", Path("python"))
    teacher, student, data, objectives = (options.pop(name) for name in ("teacher", "student", "data", "objectives"))
    return stillroom.distill(teacher, student, data, objectives, **options)


def _steps(learner: Any, *arguments: Any, **options: Any) -> list[Any]:
    return list(stillroom.train(learner, stillroom.as_source(vectors()), *arguments, **options))


def _live() -> Any:
    return stillroom.Live(Small(), ["logits"])


def _attack(model: nn.Module | None = None, **options: Any) -> Any:
    inputs, labels = vectors()
    batch = {"id": torch.zeros(90, 2, dtype=torch.long), "inputs": inputs, "labels": labels}
    return stillroom.PGD(0.1, low=-9, high=9, **options).find(model or Small(), batch)


def _robust(**options: Any) -> Any:
    attack = stillroom.PGD(0.1, low=-9, high=9)
    return stillroom.robust_accuracy(Small(), stillroom.as_source(vectors()), attack, **options)


def _suits(student: Any = Small, teachers: Any = None, **options: Any) -> Any:
    named = {"one": _live(), "two": _live()} if teachers is None else teachers
    return stillroom.suitability(student, named, stillroom.as_source(vectors()), **options)


def _store(folder: str = "kept") -> Any:
    return stillroom.record(_live(), stillroom.as_source(vectors()), folder)


def _checkpoints(w: World) -> Any:
    settings = stillroom.Training(steps=2, batch=8)
    _steps(stillroom.Learner(Small(), ["labels"]), None, settings, folder=w.here / "training")
    wide = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3))
    return _steps(stillroom.Learner(wide, ["labels"]), None, settings, folder=w.here / "training")


def _seeds(w: World) -> Any:
    settings = stillroom.Training(steps=2, batch=8)
    for seed in (0, 1):
        _steps(stillroom.Learner(Small(), ["labels"]), None, settings, folder=w.here / "training", seed=seed)


class Sick(Small):
    """A teacher whose answer to some rows is not a number."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) * torch.where(inputs[:, :1] > 2, torch.nan, 1.0)


CALLS: dict[str, tuple[Callable[[World], Any], tuple[str, ...]]] = {
    "no steps": (lambda w: _distill(steps=0), ("steps=0", "1 or more")),
    "several seeds of one module": (lambda w: _distill(student=Small(), seeds=(0, 1)), ("2 seeds", "lambda: Small()")),
    "no seeds": (lambda w: _distill(seeds=()), ("seeds", "at least one")),
    "a teacher that is none": (lambda w: _distill(teacher="resnet"), ("str", "nn.Module or a Store")),
    "a maker that makes nothing": (lambda w: _distill(student=lambda: 3), ("int", "nn.Module")),
    "a student that is none": (lambda w: _distill(student="cnn"), ("cnn", "nn.Module")),
    "an unknown objective": (lambda w: _distill(objectives=["labels", "kdd"]), ("kdd", "'kd'")),
    "no objectives": (lambda w: _distill(objectives=[]), ("objective", "kd")),
    "a tap that is not there": (
        lambda w: _distill(objectives=["labels", lambda: stillroom.match("hint", "frist", "first")]),
        ("frist", "'first'", "the student of arm"),
    ),
    "a tap that the teacher lacks": (
        lambda w: _distill(objectives=["labels", lambda: stillroom.match("hint", "first", "frist")]),
        ("frist", "'first'", "the teacher"),
    ),
    "a student of other classes": (
        lambda w: _distill(student=lambda: Small(classes=5)),
        ("(4, 5)", "(4, 3)", "student"),
    ),
    "labels beyond the network": (
        lambda w: _distill(teacher=Small(classes=2), student=lambda: Small(classes=2)),
        ("labels", "(4, 2)", "0, 1, 2"),
    ),
    "a student that cannot take the rows": (
        lambda w: _distill(student=lambda: Small(width=7)),
        ("inputs (4, 6)", "7x5", "the student"),
    ),
    "a teacher that is not finite": (lambda w: _distill(teacher=Sick()), ("logits", "not finite", "example")),
    "too many labels asked for": (lambda w: _distill(labels=10**6), ("1000000", "labels")),
    "kd without a teacher": (
        lambda w: _steps(stillroom.Learner(Small(), ["kd"]), None),
        ("Objectives read a teacher", "logits", "Give a Store"),
    ),
    "a bank from a live teacher": (
        lambda w: _steps(stillroom.Learner(Small(), [stillroom.match("bank", "first", "first")]), _live()),
        ("live teacher", "Record"),
    ),
    "prepare with a store": (
        lambda w: _steps(stillroom.Learner(Small(), ["kd"]), _store(), prepare=lambda s, b: b),
        ("prepare=", "Store", "live teacher"),
    ),
    "a signal that the store lacks": (
        lambda w: _steps(stillroom.Learner(Small(), [stillroom.match("hint", "first", "first")]), _store()),
        ("first", "logits"),
    ),
    "a store of another teacher": (
        lambda w: _store().check(stillroom.as_source(vectors()), canary=_live()),
        ("not the teacher that was recorded", "logits"),
    ),
    "another teacher's fingerprint": (
        lambda w: stillroom.record(
            _live(), stillroom.as_source(vectors()), "kept", fingerprints={"teacher": "a" * 64}
        ).check(teacher_fingerprint="b" * 64),
        ("another teacher", "aaaa", "bbbb"),
    ),
    "another transform's fingerprint": (
        lambda w: stillroom.record(
            _live(), stillroom.as_source(vectors()), "kept", fingerprints={"transform": "a" * 64}
        ).check(transform_fingerprint="c" * 64),
        ("another transform", "aaaa", "cccc"),
    ),
    "a checkpoint of another architecture": (_checkpoints, ("checkpoint.safetensors", "first.weight", "0.weight")),
    "a checkpoint of another seed": (
        _seeds,
        ("checkpoint.safetensors", "another training", "seed", "remove the checkpoint"),
    ),
    "nothing to train": (
        lambda w: _steps(stillroom.Learner(Small().requires_grad_(False), ["labels"])),
        ("nothing to train", "Unfreeze"),
    ),
    "what cannot be data": (lambda w: stillroom.as_source(3), ("int", "Dataset")),
    "columns of unequal length": (
        lambda w: stillroom.as_source((torch.zeros(4, 6), torch.zeros(3, dtype=torch.long))),
        ("4", "3"),
    ),
    "NaN in given rows": (
        lambda w: _distill(data=(torch.full((90, 6), float("nan")), vectors()[1])),
        ("NaN", "0", "finite numbers"),
    ),
    "an unknown split to evaluate": (
        lambda w: stillroom.evaluate(Small(), stillroom.as_source(vectors()), split="tset"),
        ("tset", "'test'"),
    ),
    "no folder to load": (lambda w: stillroom.load("nowhere"), ("nowhere", "bundle")),
    "an attack with a seed in words": (lambda w: stillroom.PGD(0.1, seed="x"), ("seed='x'", "whole number")),
    "an attack from a to b": (lambda w: stillroom.PGD(0.1, low="a", high="b"), ("low=a", "low below high")),
    "a module that shall disagree": (
        lambda w: _attack(along="disagreement", teacher=Small()),
        ("a bare Small", "wrap it", "teacher=Live"),
    ),
    "an attack on a class that is not there": (lambda w: _attack(Small(classes=2)), ("labels 0 to 2", "0 to 1")),
    "rows to attack in words": (lambda w: _robust(limit="a"), ("limit='a'", "1 or more, or None")),
    "no rows to attack": (lambda w: _robust(limit=0), ("limit=0", "1 or more, or None")),
    "teachers without names": (
        lambda w: _suits(teachers=[Small(), Small()]),
        ("a list", "a dictionary of teachers by name"),
    ),
    "a student by name": (lambda w: _suits(student="cnn"), ("'cnn'", "a function without arguments")),
    "rows to look at in words": (lambda w: _suits(rows="x"), ("'rows'", "'x'", "20 or more")),
    "a missing optional package": (
        lambda w: _without_onnx(w),
        ("onnx", "not installed", "pip install 'stillroom[export]'"),
    ),
}


def _without_onnx(w: World) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            patch.setitem(sys.modules, package, None)
        deployed = stillroom.load(w.done / "teacher")
        rows = torch.from_numpy(images(20)[0])
        return stillroom.export(deployed, w.here / "exported", examples=rows, check=(rows, None))


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_answered_in_words(world: World, name: str) -> None:
    torch.manual_seed(0)
    call, phrases = CALLS[name]
    with pytest.raises(UserError) as caught:
        call(world)
    told = str(caught.value)
    TOLD[name] = plain(told, world)
    for phrase in phrases:
        assert phrase.lower() in told.lower(), told
    assert not (world.here / "python" / "metrics.json").exists() and not (world.here / "exported").exists()


# --- what the system refuses ------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_what_was_there_stays(world: World) -> None:
    """A real one of 300 kB where we may mount it."""
    place = world.here / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        recipe = world.recipe(("hidden: 8", "hidden: 512"))
        code, out, told = command("run", recipe, "--out", place / "run", "--quiet")
        TOLD["a full disk"] = plain(told, world)
        assert code == 2, out + told
        assert "disk is full" in told and "free some space" in told and "Traceback" not in told
        assert not (place / "run" / "metrics.json").exists()
        assert not [path for path in contents(place) if path.endswith(".part")]
    finally:
        subprocess.run(["umount", str(place)], check=True)
    code, _, told = command("run", recipe, "--out", place / "run", "--quiet")
    assert code == 0, told


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "permission was denied"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_a_write_that_fails_half_way_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    (world.here / "p.csv").write_text("what was there before")
    rows = _good_rows(world)

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    code, out, told = command("predict", world.done, rows, "--out", "p.csv")
    TOLD[f"write: {words}"] = plain(told, world)
    assert code == 2, out + told
    assert words in told and "p.csv" in told
    assert (world.here / "p.csv").read_text() == "what was there before"
    assert contents(world.here) == {"p.csv", "rows.npy"}


def test_a_disk_that_fills_while_recording_names_the_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyarrow.parquet, "write_table", fail)
    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_table", fail)
    monkeypatch.setenv("STILLROOM_CACHE", str(world.here / "out-cache"))
    code, out, told = command("run", world.recipe(), "--out", "out", "--quiet")
    TOLD["a full disk while recording"] = plain(told, world)
    assert code == 2, out + told
    assert "shard-00000.parquet" in told and "disk is full" in told
    assert not [path for path in contents(world.here) if path.endswith(".part")]


def test_a_damaged_store_in_the_cache_is_mended_by_the_same_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLROOM_CACHE", str(world.here / "cache"))
    recipe = world.recipe()
    assert command("run", recipe, "--out", "out", "--quiet")[0] == 0
    wanted = (world.here / "out" / "metrics.json").read_text()
    shard = next((world.here / "out" / "knowledge").resolve().glob("*.parquet"))
    content, whole = bytearray(shard.read_bytes()), files.checksum(shard)
    content[100] ^= 64
    shard.write_bytes(bytes(content))
    for harm in (lambda: None, shard.unlink):  # another content, then none
        harm()
        code, _, told = command("run", recipe, "--out", "out", "--quiet")
        assert code == 0, told
        assert files.checksum(shard) == whole
    assert (
        json.loads((world.here / "out" / "metrics.json").read_text())["models"]["kd"]["score"]
        == (json.loads(wanted)["models"]["kd"]["score"])
    )


def test_interrupted_it_can_be_resumed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.pipeline import jobs

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("STILLROOM_CACHE", str(world.here / "out-cache"))
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_finish", interrupt)
        code, out, told = command("run", world.recipe(), "--out", "out", "--quiet")
    TOLD["Ctrl-C"] = plain(told, world)
    assert code == 130 and "run the same command again" in told and "Traceback" not in out + told
    with locked(world.here / "out"):
        pass  # the lock was given back
    code, _, told = command("run", world.recipe(), "--out", "out", "--quiet")
    assert code == 0, told


def test_our_own_fault_is_called_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a slip of ours")

    monkeypatch.setattr("stillroom.recipe.read_recipe", broken)
    code, out, told = command("check", world.recipe())
    assert code == 1 and "fault of Stillroom" in told and "a slip of ours" in told and "Traceback" not in out + told


def test_a_good_command_still_ends_with_0(world: World) -> None:
    assert command("check", world.recipe())[0] == 0
    assert command("predict", world.done, _good_rows(world), "--out", "p.csv")[0] == 0
    assert len((world.here / "p.csv").read_text().splitlines()) == 4
    assert command("report", world.done)[0] == 0
    assert json.loads(command("store", "verify", world.done / "knowledge", "--json")[1])["whole"] is True


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_of_messages_is_long_and_no_two_are_alike(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed with -s. Cases that were run before are not run again."""
    for number, name in enumerate([*CASES, *CALLS]):
        if name in TOLD:
            continue
        here = world.here / str(number)
        here.mkdir()
        os.chdir(here)
        place = World(world.done, world.data, here)
        if name in CASES:
            TOLD[name] = plain(command(*CASES[name][0](place))[2], place)
        else:
            with pytest.raises(UserError) as caught:
                CALLS[name][0](place)
            TOLD[name] = plain(str(caught.value), place)
    table = "".join(f"{name:<42} {message}\n" for name, message in TOLD.items())
    (tmp_path / "messages.txt").write_text(table, encoding="utf-8")
    with capsys.disabled() if "-s" in sys.argv else contextlib.nullcontext():
        print(f"\n{table}{len(TOLD)} messages")
    assert len(TOLD) >= 100
    alike = [name for name, message in TOLD.items() if list(TOLD.values()).count(message) > 1]
    assert not alike
    for name, message in TOLD.items():
        assert len(message) > 30, f"{name}: {message}"


# --- what cannot happen -----------------------------------------------------------------------------------------------


def test_no_pickle_and_no_code_in_data_anywhere() -> None:
    """Weights, stores and recipes are numbers and text: nothing of them may run."""
    refused = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    odd = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            odd += [f"{path.name}: {name}" for name in names if name.split(".")[0] in refused]
            if isinstance(node, ast.Call):
                odd += [f"{path.name}:{node.lineno}: {found}" for found in [_dangerous(node)] if found]
    assert not odd


def _dangerous(node: ast.Call) -> str:
    called = ast.unparse(node.func)
    options = {word.arg: word.value for word in node.keywords}
    if re.fullmatch(r"(torch\.(load|save|hub\.\w+)|eval|exec|compile|os\.system|yaml\.load|subprocess\.\w+)", called):
        return called
    if called.endswith("np.load") or called == "numpy.load":
        safe = options.get("allow_pickle")
        return "" if isinstance(safe, ast.Constant) and safe.value is False else f"{called} without allow_pickle=False"
    code = options.get("trust_remote_code")
    return "" if code is None or (isinstance(code, ast.Constant) and code.value is False) else "trust_remote_code"
