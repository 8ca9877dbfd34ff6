"""Kill a run at every fault point that it passes, run it again, and compare with the run that nobody disturbed.

    python benchmarks/faults.py [--every N] [--onnx] [--twice]

Each kill is a SIGKILL of the real command line at the k-th passing of a named point; the rerun is the same command.
Compared: ``metrics.json`` without its times, the weights of every student and of the teacher, and the stored knowledge.
The processes are forked from one that has imported PyTorch already, so a kill and its rerun take about a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RECIPE = """\
data: {{use: npz, path: "{data}", labels: 40}}
teacher: {{model: net, hidden: 24, train: {{steps: 8, batch: 32, lr: 1.0e-2}}}}
student: {{model: net, hidden: 8}}
objectives: [{{use: labels, weight: 0.1}}, {{use: kd, weight: 0.9}}]
train: {{steps: 12, batch: {{labelled: 16, transfer: 16}}, lr: 1.0e-2}}
arms:
  kd: {{}}
  both: {{add: [{{use: mse_logits, weight: 0.1}}, {{use: l1, weight: 1.0e-5}}]}}
seeds: [0]
trials: [1]
export: {{onnx: {onnx}}}
"""
IMPORTED = [
    "stillroom.cli.app",
    "stillroom.cli.screen",
    "stillroom.pipeline.run",
    "stillroom.pipeline.recipes",
    "stillroom.recipe",
    "torch._dynamo",
    "onnxscript",
    "onnxruntime",
    "jinja2",
    "scipy.stats",
]
TIMES = ("latency_ms", "throughput_per_s")
WEIGHTS = (
    "arms/*/model.safetensors",
    "arms/*/answers.safetensors",
    "teacher/model.safetensors",
    "knowledge/*.parquet",
    "export/student/model.safetensors",
)


@dataclass(frozen=True)
class Lab:
    """A folder with data and a recipe, in which runs are started, killed and compared."""

    root: Path

    @classmethod
    def build(cls, root: Path, *, onnx: bool) -> Lab:
        """Write data of 8 x 8 images in four classes, and a small recipe with a teacher and two arms."""
        numbers = np.random.default_rng(7)
        labels = np.arange(240) % 4
        images = (numbers.integers(0, 120, (240, 1, 8, 8)) + 30 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(root / "data.npz", inputs=images, labels=labels)
        text = RECIPE.format(data=root / "data.npz", onnx="{int8: true}" if onnx else "null")
        (root / "small.yaml").write_text(text, encoding="utf-8")
        return cls(root)

    def environment(self, name: str, fault: str = "") -> dict[str, str]:
        """Return what a process of the run ``name`` needs: its own cache, one thread, and where to die."""
        return {"STILLROOM_CACHE": str(self.root / f"{name}-cache"), "STILLROOM_FAULT": fault, "OMP_NUM_THREADS": "1"}

    def command(self, name: str, jobs: int = 1) -> list[str]:
        """Return the arguments of the run ``name``."""
        return ["run", str(self.root / "small.yaml"), "--out", str(self.root / name), "--jobs", str(jobs), "--quiet"]

    def run(self, name: str, fault: str = "") -> int:
        """Run in a forked process and return its exit code; negative when it was killed."""
        return forked(self.command(name), self.environment(name, fault), self.root / f"{name}.log")

    def result(self, name: str) -> dict[str, Any]:
        """Return what a finished run left, times aside."""
        return result(self.root / name)

    def forget(self, name: str) -> None:
        """Remove a run and its cache."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        shutil.rmtree(self.root / f"{name}-cache", ignore_errors=True)


def forked(arguments: Sequence[str], environment: dict[str, str], log: Path) -> int:
    """Run the command line in a process forked from one that has imported everything; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = context.Process(target=_child, args=(list(arguments), environment, str(log)))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(arguments)} did not end in two minutes")
    return process.exitcode


def _child(arguments: list[str], environment: dict[str, str], log: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = ["stillroom", *arguments]
    from stillroom.cli.app import main

    main()


def result(folder: Path) -> dict[str, Any]:
    """Return metrics without times, and a hash of every file of numbers."""
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in WEIGHTS
        for path in sorted(folder.glob(pattern))
    }
    return {"metrics": timeless(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))), "files": found}


def timeless(value: Any) -> Any:
    """Return metrics without latency and throughput, which no two runs share."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key not in TIMES}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def points(lab: Lab, name: str) -> list[str]:
    """Run undisturbed and return every passing of a fault point, as ``name:k``."""
    listing = lab.root / f"{name}.points"
    code = lab.run(name, f"list:{listing}")
    if code:
        raise RuntimeError((lab.root / f"{name}.log").read_text())
    seen: dict[str, int] = {}
    found = []
    for point in listing.read_text(encoding="utf-8").splitlines():
        seen[point] = seen.get(point, 0) + 1
        found.append(f"{point}:{seen[point]}")
    return found


def leftovers(folder: Path) -> list[str]:
    """Return temporary files and set-aside work that a finished run should not hold."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix == ".part" or path.name == "old"
    )


def survive(
    lab: Lab, faults: Sequence[str], wanted: dict[str, Any], *, twice: bool = False
) -> Iterator[tuple[str, str]]:
    """Kill at each fault, rerun, compare; give (fault, what went wrong or nothing)."""
    for number, fault in enumerate(faults):
        name = f"killed-{number}"
        code = lab.run(name, fault)
        wrong = "" if code == -signal.SIGKILL else f"ended with {code}, not by the kill"
        if twice and not wrong:
            lab.run(name, fault.rpartition(":")[0] + ":2")
        code = lab.run(name)
        if not wrong and code:
            wrong = f"the rerun ended with {code}: {(lab.root / f'{name}.log').read_text()[-300:]}"
        if not wrong and (found := lab.result(name)) != wanted:
            wrong = f"another result: {differences(found, wanted)}"
        if not wrong and (rest := leftovers(lab.root / name)):
            wrong = f"left behind: {rest}"
        lab.forget(name)
        yield fault, wrong


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name the parts that differ."""
    files = {
        name for name in {*found["files"], *wanted["files"]} if found["files"].get(name) != wanted["files"].get(name)
    }
    metrics = [name for name in wanted["metrics"] if found["metrics"].get(name) != wanted["metrics"][name]]
    return ", ".join([*sorted(files), *metrics])


def main() -> int:
    """Enumerate, kill, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every N-th passing")
    parser.add_argument("--onnx", action="store_true", help="with the export of graphs (slower)")
    parser.add_argument(
        "--twice", action="store_true", help="kill the rerun too, at the second passing of the same point"
    )
    asked = parser.parse_args()
    start, failed, count = time.time(), [], 0
    with tempfile.TemporaryDirectory() as place:
        lab = Lab.build(Path(place), onnx=asked.onnx)
        every = points(lab, "clean")
        wanted = lab.result("clean")
        chosen = every[:: asked.every]
        names = sorted({point.rpartition(":")[0] for point in every})
        print(f"{len(every)} passings of {len(names)} fault points ({', '.join(names)}); killing at {len(chosen)}")
        for fault, wrong in survive(lab, chosen, wanted, twice=asked.twice):
            count += 1
            if wrong:
                failed.append(fault)
                print(f"  {fault}: {wrong}")
            elif count % 25 == 0:
                print(f"  {count} of {len(chosen)}, {time.time() - start:.0f} s")
    print(
        f"{len(chosen) - len(failed)} of {len(chosen)} kill points survived with the same result, "
        f"{time.time() - start:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
