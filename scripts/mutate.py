#!/usr/bin/env python3
"""Plant bugs in the code, one at a time, and say which of them the tests notice: python scripts/mutate.py

The bugs stand in scripts/mutants.toml: a file of the package, the text to replace (it must occur exactly once), what
replaces it, and the tests that should notice: files, or single ones as "tests/test_verdict.py::test_of_something".
Each is planted in a copy of the package; the checkout is not touched. The tests must pass without a bug first. PyTorch
is imported once: each trial is a fork of this process.

Examples:
  python scripts/mutate.py --only verdict jobs     the bugs of files, or with a name, in which one of the words occurs
  python scripts/mutate.py --json rate.json        also write every outcome as JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "stillroom"
LIMIT = 240  # seconds; a test that hangs has noticed


@dataclass(frozen=True)
class Mutant:
    """One bug: what it is called, where it stands, what is replaced by what, which tests should notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read(path: Path) -> list[Mutant]:
    """Read the bugs; wrong entries end the program with their names."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    by_file = content.get("tests", {})
    mutants, wrong = [], []
    for entry in content["mutant"]:
        tests = entry.get("tests") or by_file.get(entry["file"], [])
        mutant = Mutant(entry["name"], entry["file"], entry["old"], entry["new"], tuple(tests))
        count = (PACKAGE / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if not tests:
            wrong.append(f"Mutant '{mutant.name}' names no tests, and [tests] has none for {mutant.file}.")
        if count != 1:
            wrong.append(f"Mutant '{mutant.name}': its text occurs {count} times in {mutant.file}, not once.")
        if mutant.name in {one.name for one in mutants}:
            wrong.append(f"The name '{mutant.name}' occurs twice.")
        mutants.append(mutant)
    if wrong:
        sys.exit("\n".join(wrong))
    return mutants


class First:
    """A plugin of pytest that writes the first test that failed, and why if not by an assert, into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that failed, unless one did before."""
        if report.failed and not self.file.exists():
            said = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", "")).partition("\n")[0]
            why = "" if said.startswith(("assert", "AssertionError")) else f" ({said[:80]})"
            self.file.write_text(report.nodeid + why, encoding="utf-8")


def failing(package: Path, tests: tuple[str, ...]) -> str:
    """Return the first test that fails with the package in ``package``'s parent; "" where all pass.

    Each call is a process of its own.
    """
    first = package.parent / "first"
    child = os.fork()
    if child == 0:
        os.setsid()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.path.insert(0, str(package.parent))
        os.environ["PYTHONPATH"] = str(package.parent)
        os.environ["STILLROOM_CACHE"] = str(package.parent / "cache")
        os.chdir(ROOT)
        sys.dont_write_bytecode = True
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        os._exit(int(pytest.main([*options, *tests], plugins=[First(first)])))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in (2, 3, 4, 5):  # interrupted, internal, usage, no tests: no verdict about the bug
                sys.exit(f"pytest did not run {' '.join(tests)} (exit code {code}).")
            return "" if code == 0 else first.read_text(encoding="utf-8") if first.exists() else f"exit code {code}"
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"no end within {LIMIT} s"


def planted(mutant: Mutant | None, tests: tuple[str, ...]) -> str:
    """Return the first test that fails with the bug planted, or without any; "" where all pass."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        package = Path(folder) / "stillroom"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = package / mutant.file
            file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        return failing(package, tests)


def main() -> None:
    """Run every bug that was asked for and print a line each, then the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="words in the name or file of the bugs to plant")
    parser.add_argument("--mutants", type=Path, default=ROOT / "scripts" / "mutants.toml", help="the list of bugs")
    parser.add_argument("--json", type=Path, default=None, help="write every outcome to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mutants = [
        one for one in read(options.mutants) if any(word in one.name or word in one.file for word in options.only)
    ]
    if not mutants:
        sys.exit(f"No mutant has {' or '.join(options.only)} in its name or file.")
    import hypothesis  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch  # noqa: F401  # imported once, before the forks

    if found := planted(None, tuple(sorted({test for one in mutants for test in one.tests}))):
        sys.exit(f"This test fails without any bug: {found}. Mend it first.")
    outcomes = {}
    for number, mutant in enumerate(mutants, 1):
        start = time.monotonic()
        found = planted(mutant, mutant.tests)
        outcomes[mutant.name] = "killed" if found else "survived"
        where = f"{mutant.name} ({mutant.file}, {time.monotonic() - start:.1f} s{found and ', '}{found})"
        print(f"[{number}/{len(mutants)}] {outcomes[mutant.name]:9}{where}", flush=True)
    killed = sum(one == "killed" for one in outcomes.values())
    print(f"{killed} of {len(outcomes)} killed ({100 * killed / len(outcomes):.1f} %)")
    if options.json:
        options.json.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
