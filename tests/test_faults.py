"""A run that is killed and started again ends as the run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import faults
from faults import Lab

from stillroom import cache, files

CHOSEN = [
    "file:opened:1",  # the very first file of the run
    "train:step:6",  # in the middle of training the teacher
    "record:batch:1",
    "record:shard:1",
    "record:committed:1",
    "record:manifest:1",
    "train:step:16",  # in the middle of the control
    "file:renamed:20",  # after the mark of a student, before its checkpoint
    "train:checkpoint:6",
    "job:answers:1",
    "job:tidied:2",  # while what is no longer needed is removed
    "job:tidied:4",
    "commit:before:3",  # a student is trained, not marked
    "commit:after:4",  # marked, not shared yet
    "publish:ready:2",
    "bundle:weights:3",
    "run:metrics:1",
]
GRAPHS = ["export:bundle", "export:onnx", "export:int8", "run:metrics"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.build(tmp_path_factory.mktemp("faults"), onnx=False)


@pytest.fixture(scope="module")
def passings(lab: Lab) -> list[str]:
    return faults.points(lab, "clean")


@pytest.fixture(scope="module")
def wanted(lab: Lab, passings: list[str]) -> dict:
    return lab.result("clean")


def test_a_clean_run_passes_every_point_that_matters(passings: list[str]) -> None:
    assert set(CHOSEN) <= set(passings)
    assert len(passings) > 200


def test_two_clean_runs_are_equal(lab: Lab, wanted: dict) -> None:
    assert lab.run("again") == 0
    assert lab.result("again") == wanted
    assert faults.leftovers(lab.root / "again") == []
    lab.forget("again")


@pytest.mark.parametrize("fault", CHOSEN)
def test_killed_and_run_again_the_result_is_the_same(lab: Lab, wanted: dict, fault: str) -> None:
    assert list(faults.survive(lab, [fault], wanted)) == [(fault, "")]


def test_killed_again_and_again(lab: Lab, wanted: dict, passings: list[str]) -> None:
    """Each start dies at its own eleventh step of training, until one does not get that far."""
    deaths = 0
    while lab.run("often", "train:step:11") == -signal.SIGKILL:
        deaths += 1
        assert deaths < 20
    assert deaths >= 3
    assert lab.result("often") == wanted
    assert faults.leftovers(lab.root / "often") == []


def test_another_run_with_the_same_cache_may_be_killed_while_it_takes_from_it(lab: Lab, wanted: dict) -> None:
    cache = {"STILLROOM_CACHE": str(lab.root / "clean-cache"), "OMP_NUM_THREADS": "1"}
    for fault in ("commit:before:1", "commit:before:3", "commit:after:2"):
        assert (
            faults.forked(lab.command("taker"), {**cache, "STILLROOM_FAULT": fault}, lab.root / "taker.log")
            == -signal.SIGKILL
        )
    assert faults.forked(lab.command("taker"), {**cache, "STILLROOM_FAULT": ""}, lab.root / "taker.log") == 0
    assert lab.result("taker") == wanted


def test_a_cache_that_cannot_be_written_stops_nobody(lab: Lab, tmp_path: Path) -> None:
    step, kept = tmp_path / "step", tmp_path / "wall" / "kept"
    step.mkdir()
    files.write_bytes(step / "numbers", b"123")
    files.commit(step, "inputs")
    (tmp_path / "wall").write_text("a file where the cache should be")
    cache.publish(step, kept, "inputs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step", "wall"]


def test_what_stands_damaged_in_the_cache_is_replaced(tmp_path: Path) -> None:
    step, kept = tmp_path / "step", tmp_path / "cache" / "kept"
    step.mkdir()
    files.write_bytes(step / "numbers", b"123")
    files.commit(step, "inputs")
    cache.publish(step, kept, "inputs")
    (kept / "numbers").write_bytes(b"321")  # as many bytes
    assert files.committed(kept, "inputs") is None
    cache.publish(step, kept, "inputs")
    assert files.committed(kept, "inputs") is not None
    assert (kept / "numbers").read_bytes() == b"123"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return Lab.build(tmp_path_factory.mktemp("graphs"), onnx=True)


def test_killed_at_several_places_of_the_export(graphs: Lab) -> None:
    assert graphs.run("clean") == 0
    wanted = graphs.result("clean")
    for fault in GRAPHS:  # one after the other in the same folder: what was exported so far is made again
        assert graphs.run("killed", fault) == -signal.SIGKILL, fault
        assert not (graphs.root / "killed" / "metrics.json").exists()
    assert graphs.run("killed") == 0
    assert graphs.result("killed") == wanted
    assert faults.leftovers(graphs.root / "killed") == []


TEXTS = """\
data: {{use: text, path: "{data}", labels: 40}}
teacher: {{model: bilstm, embedding: 16, hidden: 16, train: {{steps: 8, batch: 16, lr: 1.0e-2}}}}
student: {{model: bigru, embedding: 8, hidden: 6, encode: {{unit: character, longest: 40}}}}
objectives:
  - {{use: labels, weight: 0.1}}
  - {{use: kd, weight: 0.9}}
  - {{use: memory, student: memory@h, teacher: memory@h}}
record: {{views: 3, precision: auto}}
train: {{steps: 12, batch: {{labelled: 8, transfer: 16}}, lr: 1.0e-2}}
seeds: [0]
export: {{onnx: null}}
"""


def test_texts_views_and_memories_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    numbers, words = random.Random(0), ["good lovely fine warm".split(), "bad dull slow cold".split()]
    lines = ["text,label"]
    for row in range(220):  # some unlabelled, in batches of like length
        text = " ".join(numbers.choice([*words[row % 2], "the", "a", "plot"]) for _ in range(numbers.randint(1, 14)))
        lines.append(f"{text} {row},{'' if row % 7 == 0 else ['pos', 'neg'][row % 2]}")
    (tmp_path / "texts.csv").write_text("\n".join(lines))
    (tmp_path / "small.yaml").write_text(TEXTS.format(data=tmp_path / "texts.csv"))
    lab = Lab(tmp_path)
    assert lab.run("clean") == 0
    wanted = lab.result("clean")
    assert len(wanted["files"]) > 5 and wanted["metrics"]["memory"]["models"]
    for fault in ("train:step:5", "record:batch:2", "train:step:7", "train:checkpoint:2", "run:metrics:1"):
        assert lab.run("killed", fault) == -signal.SIGKILL, fault
    assert lab.run("killed") == 0
    assert lab.result("killed") == wanted
    assert faults.leftovers(tmp_path / "killed") == []


# --- several processes, killed at any time ---------------------------------------------------------------------


def started(lab: Lab, name: str, fault: str = "") -> subprocess.Popen[str]:
    source = str(Path(__file__).parents[1] / "src")
    environment = {**os.environ, **lab.environment(name, fault), "PYTHONPATH": source}
    command = [sys.executable, "-m", "stillroom", *lab.command(name, jobs=2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, preexec_fn=_hears_ctrl_c, **pipes)


def _hears_ctrl_c() -> None:
    """A test runner begun in the background hands down that Ctrl-C is ignored; a person's shell does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def family(parent: int) -> set[int]:
    """The children of a process, and theirs."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found, before = {parent}, 0
    while len(found) != before:
        before = len(found)
        found |= {child for child, above in parents.items() if above in found}
    return found - {parent}


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(processes: set[int], within: float) -> bool:
    until = time.monotonic() + within
    while any(map(alive, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def several(lab: Lab, wanted: dict) -> Iterator[Lab]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    yield lab


@pytest.mark.slow
def test_a_parallel_run_killed_at_any_time_leaves_no_orphans_and_goes_on(several: Lab, wanted: dict) -> None:
    numbers = random.Random(3)
    started_at = time.monotonic()
    whole = started(several, "whole")
    assert whole.wait(90) == 0
    length = time.monotonic() - started_at
    assert several.result("whole") == wanted  # two processes, the same result
    for _ in range(3):
        running = started(several, "struck")
        time.sleep(length * numbers.uniform(0.2, 0.8))
        workers = family(running.pid)
        running.kill()
        assert running.wait(10) == -signal.SIGKILL
        assert gone(workers, within=2), "workers outlived the run"
    last = started(several, "struck")
    assert last.wait(90) == 0, last.stderr.read()
    assert several.result("struck") == wanted
    assert faults.leftovers(several.root / "struck") == []


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_and_the_rerun_completes(several: Lab, wanted: dict) -> None:
    running = started(several, "worker", "job:answers")
    _, told = running.communicate(timeout=90)
    assert running.returncode == 2
    assert "A worker process ended without a word" in told and "Traceback" not in told
    assert several.run("worker") == 0
    assert several.result("worker") == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "Stopped"), (signal.SIGTERM, "Terminated")])
def test_ctrl_c_and_sigterm_say_that_it_can_go_on_and_it_does(
    several: Lab, wanted: dict, number: int, word: str
) -> None:
    name = f"stopped-{number}"  # of its own: the other signal's run is whole by now
    running = started(several, name)
    until = time.monotonic() + 60
    while not list((several.root / name / "arms").glob("*/begun.json")) and time.monotonic() < until:
        time.sleep(0.05)
    workers = family(running.pid)
    running.send_signal(number)
    _, told = running.communicate(timeout=20)
    assert running.returncode == 128 + number, told
    assert f"{word}. What was finished is kept" in told and "Traceback" not in told
    assert gone(workers, within=2)
    assert several.run(name) == 0
    assert several.result(name) == wanted
