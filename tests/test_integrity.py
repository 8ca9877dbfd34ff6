"""What Stillroom wrote is what it reads: damage is told and mended, and what others may write is not trusted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import faults
from faults import Lab

from stillroom import cache, files, tensors
from stillroom.cli.app import app
from stillroom.errors import Damaged, StoreError, UserError
from stillroom.pipeline import jobs
from stillroom.pipeline.run import _Events
from stillroom.pipeline.verdict import _read


def flip(path: Path, place: int = -3, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(bytes(content))


def step(folder: Path, content: bytes = b"123") -> Path:
    folder.mkdir(parents=True)
    files.write_bytes(folder / "numbers", content)
    files.commit(folder, "inputs")
    return folder


@pytest.fixture(autouse=True)
def fresh_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_told", set())
    files.take_notes()


# --- one step ------------------------------------------------------------------------------------------------


def test_a_committed_step_is_known_by_its_content(tmp_path: Path) -> None:
    folder = step(tmp_path / "step")
    assert files.committed(folder, "inputs") is not None and files.committed(folder, "others") is None
    flip(folder / "numbers")  # of the same size
    assert files.committed(folder, "inputs") is None
    assert files.damage(folder, "inputs") == "numbers does not match its checksum"
    files.begin(folder, "inputs")
    assert files.take_notes() == []  # nothing begun there: another step's work is moved as before
    assert (tmp_path / "old" / "step-1" / "numbers").is_file()


def test_a_damaged_step_is_moved_with_a_note_and_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    files.begin(folder, "inputs")
    files.write_bytes(folder / "numbers", b"123")
    files.commit(folder, "inputs")
    flip(folder / "numbers")
    files.begin(folder, "inputs")
    assert sorted(path.name for path in folder.iterdir()) == ["begun.json"]
    said = f"{folder} was damaged (numbers does not match its checksum); moved to {tmp_path}/old/step-1"
    assert files.take_notes() == [f"{said}, and made again."]


@pytest.mark.parametrize(
    "content",
    ['{"inputs": "inputs", "files": [1]}', '{"inputs": "inputs", "files": null}', "[]", "null", "7", "[" * 100_000,
     "9" * 5_000, "\x00", '{"inputs": "inputs", "files": {"numbers": 3}}'],
)  # fmt: skip
def test_a_mark_of_another_shape_is_no_mark(tmp_path: Path, content: str) -> None:
    folder = step(tmp_path / "step")
    (folder / "done.json").write_text(content)
    assert files.committed(folder, "inputs") is None


def test_what_a_step_noted_is_sealed_too(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    files.commit(folder, "inputs", result={"score": 0.5, 3: (1, 2)})
    found = files.committed(folder, "inputs")
    assert found is not None and found["result"] == {"score": 0.5, "3": [1, 2]}
    mark = folder / "done.json"
    mark.write_text(mark.read_text().replace("0.5", "0.7"))
    assert files.committed(folder, "inputs") is None


def test_a_file_is_hashed_once_while_it_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    whole = files.checksum
    monkeypatch.setattr(files, "checksum", lambda path: hashed.append(path) or whole(path))
    monkeypatch.setattr(files, "SETTLED", -(10**18))
    file = tmp_path / "numbers"
    file.write_bytes(b"123")
    assert files.known_checksum(file) == files.known_checksum(file) == whole(file) and len(hashed) == 1
    os.utime(file, ns=(1, 1))
    files.known_checksum(file)
    assert len(hashed) == 2
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match="not a regular file"):
        files.known_checksum(file)


def test_a_copy_is_compared_with_what_was_committed(tmp_path: Path) -> None:
    source, target = step(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    flip(source / "numbers")
    with pytest.raises(Damaged, match="does not match its checksum"):
        files.copy_step(source, target)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"b": float("nan")}]])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"not finite: got (nan|inf) at 'a(\.1\.b)?'"):
        files.write_json(tmp_path / "numbers.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_packed_tensors_carry_their_checksum(tmp_path: Path) -> None:
    file = tmp_path / "kept.safetensors"
    kept = {"a": torch.arange(6.0), "ü": torch.ones(2, dtype=torch.int64)}
    whole = tensors.pack(kept, {"step": 3, "é": '"\\'})
    assert whole == tensors.pack(dict(reversed(kept.items())), {"é": '"\\', "step": 3})
    file.write_bytes(whole)
    read, meta = tensors.unpack(file)
    assert torch.equal(read["a"], torch.arange(6.0)) and meta == {"step": 3, "é": '"\\'}
    for place in range(len(whole)):  # every byte of the file
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        file.write_bytes(bytes(changed))
        try:
            found, noted = tensors.unpack(file, error=Damaged)
        except Damaged:
            continue
        assert noted == meta and all(torch.equal(found[name], read[name]) for name in read), place


# --- rights and trust ---------------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "wanted"), [(0o077, 0o600), (0o022, 0o644), (0o027, 0o640)])
def test_files_follow_the_umask_and_the_cache_is_private(
    tmp_path: Path, umask: Callable[[int], int], mask: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    umask(mask)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    folder = step(tmp_path / "step")
    assert mode(folder / "numbers") == wanted == mode(folder / "done.json")
    cache.publish(folder, cache.cached("jobs", "inputs"), "inputs")
    assert mode(tmp_path / "cache") == 0o700 == mode(cache.cached("jobs", "inputs"))


def test_what_others_may_write_is_not_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    folder, kept = step(tmp_path / "step"), cache.cached("jobs", "inputs")
    cache.publish(folder, kept, "inputs")

    def taken(name: str) -> bool:
        (tmp_path / name).mkdir()
        return cache.from_cache("jobs", tmp_path / name, "inputs")

    assert taken("a") and (tmp_path / "a" / "numbers").read_bytes() == b"123"
    kept.chmod(0o775)
    assert "mode 775" in cache.untrusted(kept) and not taken("b")
    kept.chmod(0o755)
    assert not cache.untrusted(kept)
    (kept / "numbers").chmod(0o666)
    assert cache.untrusted(kept) == "numbers may be written by others, mode 666" and not taken("c")
    (kept / "numbers").chmod(0o644)
    if os.geteuid() == 0:
        os.chown(kept / "numbers", 54321, 0)
        assert cache.untrusted(kept) == "numbers belongs to user 54321" and not taken("d")
    else:
        (kept / "numbers").chmod(0o622)
    cache.publish(folder, kept, "inputs")  # made anew
    assert not cache.untrusted(kept) and taken("e")
    assert "is not trusted (numbers" in files.take_notes()[0] and (kept.parent / "old").is_dir()


def test_a_cache_that_others_may_write_is_replaced_by_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o777)
    monkeypatch.setenv("STILLROOM_CACHE", str(root))
    inner = root / f"user-{os.geteuid()}"
    assert cache.own_cache() == cache.own_cache() == inner
    assert len(noted := files.take_notes()) == 1 and "may be written by others" in noted[0]
    cache.publish(step(tmp_path / "step"), cache.cached("jobs", "inputs"), "inputs")
    assert mode(inner) == 0o700
    inner.chmod(0o777)
    with pytest.raises(UserError, match=r"cannot be trusted.*Set STILLROOM_CACHE"):
        cache.own_cache()


# --- a whole run --------------------------------------------------------------------------------------------


class House:
    """A finished run, kept aside, from which each test takes a copy, with its own copy of the cache."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.lab = Lab.build(root, onnx=False)
        assert self.run("clean") == 0
        self.wanted = self.lab.result("clean")

    def run(self, name: str, of_cache: str = "") -> int:
        self.monkeypatch.setenv("STILLROOM_CACHE", str(self.root / f"{of_cache or name}-cache"))
        return app(self.lab.command(name), standalone_mode=False) or 0

    def copy(self, name: str) -> Path:
        self.lab.forget(name)
        run, kept = self.root / name, self.root / f"{name}-cache"
        shutil.copytree(self.root / "clean-cache", kept)
        shutil.copytree(self.root / "clean", run, symlinks=True)
        there = (self.root / "clean" / "knowledge").resolve().relative_to(self.root / "clean-cache")
        (run / "knowledge").unlink()
        (run / "knowledge").symlink_to(kept / there)
        return run

    def stopped(self, name: str) -> Path:
        """Stop a run in its first student, at the end of its training."""
        self.lab.forget(name)

        def stop(*given: object) -> None:
            raise KeyboardInterrupt

        with self.monkeypatch.context() as patch:
            patch.setattr(jobs, "_finish", stop)
            assert self.run(name) == 130
        return next((self.root / name).glob("arms/*/checkpoint.safetensors")).parent

    def notes(self, name: str) -> list[str]:
        lines = (self.root / name / "events.jsonl").read_text().splitlines()
        return [said for line in lines if (said := json.loads(line).get("note"))]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield House(tmp_path_factory.mktemp("integrity"), patch)


def swap(run: Path) -> None:
    one, other = (run / "arms" / name / "answers.safetensors" for name in ("kd-0", "both-0"))
    assert one.stat().st_size == other.stat().st_size
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "a sign in an answer": (lambda run: flip(run / "arms/kd-0/answers.safetensors", -1, 128), 1),
    "a logit that becomes NaN": (
        lambda run: (run / "arms/kd-0/answers.safetensors").write_bytes(
            (run / "arms/kd-0/answers.safetensors").read_bytes()[:-4] + b"\x00\x00\xc0\x7f"
        ),
        1,
    ),
    "answers of two arms swapped": (swap, 2),
    "a digit in the scores and a curve": (
        lambda run: [flip(run / "arms/kd-0/scores.json", 30), flip(run / "arms/both-0/curve.json", 40)],
        2,
    ),
    "the teacher's weights": (lambda run: flip(run / "teacher/model.safetensors"), 1),
    "the teacher's configuration": (lambda run: flip(run / "teacher/config.json", 20), 1),
    "what was exported": (lambda run: flip(run / "export/student/model.safetensors"), 1),
    "marks of other shapes": (
        lambda run: [
            (run / "arms/kd-0/done.json").write_text('{"files": [1]}'),
            (run / "arms/both-0/done.json").write_text("[" * 100_000),
        ],
        2,
    ),
    "a shard": (lambda run: flip(next((run / "knowledge").resolve().glob("*.parquet")), 100), 1),
    "a manifest": (lambda run: flip((run / "knowledge").resolve() / "manifest.json", 60), 1),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_can_be_made_again_is_made_again_by_the_same_command(house: House, case: str) -> None:
    harm, places = DAMAGE[case]
    harm(house.copy("harmed"))
    assert house.run("harmed") == 0
    assert house.lab.result("harmed") == house.wanted
    assert len(house.notes("harmed")) == places, house.notes("harmed")


def test_damage_in_the_cache_does_not_reach_a_new_run(house: House) -> None:
    house.copy("harmed")
    shutil.rmtree(house.root / "harmed")
    kept = house.root / "harmed-cache"
    for file in [*kept.glob("jobs/*/*/answers.safetensors"), *kept.glob("teachers/*/*/model.safetensors")]:
        flip(file)
    for file in kept.glob("knowledge/*/*/*.parquet"):
        flip(file, 100)
    assert house.run("harmed") == 0
    assert house.lab.result("harmed") == house.wanted
    assert len(house.notes("harmed")) == 5  # a teacher, its store, three students
    assert house.run("again", "harmed") == 0 and house.lab.result("again") == house.wanted
    assert house.notes("again") == []


HALF: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda job: flip(job / "checkpoint.safetensors", -3, 128),
    "mark": lambda job: [flip(file, -1, 128) for file in job.glob("mark-*.safetensors")],
    "scores of marks": lambda job: flip(job / "marks.json", (job / "marks.json").read_text().index("0.") + 2),
    "marks are gone": lambda job: (job / "marks.json").unlink(),
    "curve": lambda job: flip(job / "curve.json", 40),
    "curve is gone": lambda job: (job / "curve.json").unlink(),
    "begun": lambda job: (job / "begun.json").write_text("[" * 100_000),
}


@pytest.mark.parametrize("case", HALF)
def test_half_a_training_that_was_damaged_is_begun_anew(house: House, case: str) -> None:
    HALF[case](house.stopped("half"))
    assert house.run("half") == 0
    assert house.lab.result("half") == house.wanted
    assert len(house.notes("half")) == 1


def test_answers_must_be_finite_when_they_are_read(tmp_path: Path) -> None:
    lost = {"test": torch.tensor([[1.0, float("nan")]])}
    for content, words in ((lost, "NaN"), ({"x": torch.ones(1)}, "no answers")):
        (tmp_path / "answers.safetensors").write_bytes(tensors.pack(content))
        with pytest.raises(StoreError, match=f"{words}.*Remove {tmp_path} and run again"):
            _read(tmp_path)


# --- events -------------------------------------------------------------------------------------------------


def elsewhere(path: Path) -> None:
    (path.parent / "outside").write_text("mine\n")
    path.symlink_to(path.parent / "outside")


@pytest.mark.parametrize("place", [Path.mkdir, elsewhere, lambda path: path.symlink_to("/dev/full"), os.mkfifo])
def test_events_that_cannot_be_written_stop_nobody(tmp_path: Path, place: Callable[[Path], object]) -> None:
    path, told = tmp_path / "events.jsonl", []
    place(path)
    events = _Events(path, lambda *given: told.append(given))
    for event in ((0, 0), (1, 1)):
        events("arm kd-0", *event, "")
    assert len(told) == 2 and len(files._told) == 1 and "the run goes on" in next(iter(files._told))
    assert not (tmp_path / "outside").exists() or (tmp_path / "outside").read_text() == "mine\n"


# --- decoded pictures ---------------------------------------------------------------------------------------


def test_decoded_pictures_that_changed_in_the_cache_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    from stillroom.data.images import _decoded

    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    image.fromarray(pixels).save(tmp_path / "one.png")
    wanted = _decoded(tmp_path, [tmp_path / "one.png"], 8, 3)
    assert np.array_equal(wanted[0], pixels.transpose(2, 0, 1))
    (kept,) = (tmp_path / "cache").glob("images/*/*/pixels.npy")
    assert mode(kept.parent) == 0o700
    flip(kept)
    assert np.array_equal(_decoded(tmp_path, [tmp_path / "one.png"], 8, 3), wanted)
    assert "pixels.npy does not match its checksum" in files.take_notes()[0]
    assert faults.leftovers(tmp_path / "cache") == [str(kept.parent.parent.relative_to(tmp_path / "cache") / "old")]
