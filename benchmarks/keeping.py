"""A measurement kept: its table, the machine, the raw figures and the command, and nothing that names a place."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from timing import Figure

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "vaes", "sha_ni", "asimd", "bf16")
PACKAGES = ("torch", "numpy", "pyarrow", "safetensors")
RECORDS = Path(__file__).parent / "records"


def facts() -> dict[str, Any]:
    """Return what figures depend on of this machine; no name of it and no path."""
    told: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    present = set((told.get("flags") or told.get("Features") or "").split())
    return {
        "processor": told.get("model name", platform.machine()),
        "flags": [flag for flag in FLAGS if flag in present],
        "cores": os.cpu_count(),
        "threads used": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load before": round(os.getloadavg()[2], 2),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "torch capability": torch.backends.cpu.get_cpu_capability(),
    }


def target(figure: Figure) -> str:
    """Return the bound in words."""
    if figure.bound is None:
        return ""
    if figure.passed is not None:
        return f"within {figure.bound:.2f} {figure.unit} of 0"
    return f"{'at most' if figure.most else 'at least'} {figure.bound:g} {figure.unit}"


def measured(figure: Figure) -> str:
    """Return the median with its range."""
    digits = 1 if figure.unit in ("calls", "MB/s") else 2
    text = f"{figure.median:.{digits}f} {figure.unit}"
    if len(figure.values) > 1:
        text += f" [{min(figure.values):.{digits}f} to {max(figure.values):.{digits}f}]"
    return text


def remark(figure: Figure) -> str:
    """Return the note, and the same ratio in processor time where it was taken."""
    parts = [figure.note] if figure.note else []
    if (work := figure.more.get("processor_ratio")) is not None:
        parts.append(f"processor time {work if figure.unit == 'x' else 1 / work:.2f}")
    return "; ".join(parts)


def met(figure: Figure) -> str:
    """Return yes, no or nothing."""
    return {True: "yes", False: "no", None: ""}[figure.met]


def write(figures: Sequence[Figure], command: str, machine: dict[str, Any], seconds: float) -> Path:
    """Write ``records/<date>-cost/`` (one of the same day is replaced) and return its path from here."""
    date = datetime.now(UTC).date().isoformat()
    folder = RECORDS / f"{date}-cost"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "date": date,
        "command": command,
        "seconds": round(seconds),
        "machine": machine,
        "figures": [figure.plain() for figure in figures],
    }
    (folder / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_page(figures, command, machine, date, seconds), encoding="utf-8")
    return folder.relative_to(RECORDS.parent.parent)


def _page(figures: Sequence[Figure], command: str, machine: dict[str, Any], date: str, seconds: float) -> str:
    missed = [figure for figure in figures if figure.met is False]
    kept = sum(figure.met is True for figure in figures)
    lines = [
        f"# What Stillroom costs, {date}",
        "",
        f"`{command}`, {seconds / 60:.1f} minutes. {kept} of {kept + len(missed)} targets met"
        + (": missed are " + "; ".join(figure.name for figure in missed) if missed else "")
        + ".",
        "How each figure is made: [benchmarks/README.md](../../README.md). Raw values: `result.json`.",
        "",
        "| | figure | target | measured, median [range] | met | remark |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.part} | {one.name} | {target(one)} | {measured(one)} | {met(one)} | {remark(one)} |" for one in figures
    ]
    lines += ["", "PyTorch calls a step beyond the floor's (negative: saved):", ""]
    lines += [
        f"* {one.name}: " + ", ".join(f"{name} {value:+g}" for name, value in one.more["extra"].items())
        for one in figures
        if "extra" in one.more
    ]
    lines += ["", "Machine: " + "; ".join(f"{key} {_plain(value)}" for key, value in machine.items()) + ".", ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
