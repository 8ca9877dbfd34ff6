"""What is asked of a model once for all panels: its answers and features, kept beside what is found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from stillroom.files import begin, commit, committed, faultpoint, fingerprint, write_bytes
from stillroom.mining import Subject
from stillroom.pipeline.workers import Told

SPLITS = ("train", "validation", "test")
FILE = "answers.safetensors"


def asked(
    subject: Subject, folder: Path, inputs: Mapping[str, Any], seconds: float, told: Told
) -> tuple[list[str], float]:
    """Ask about every split, or read what was asked before; return notes, and how many seconds it took.

    A split that would take longer than ``seconds`` is asked about in part. So many examples are asked about from here
    on, by every panel.
    """
    known = fingerprint({**inputs, "asked": SPLITS})
    found = committed(folder, known)
    if found is None:
        begin(folder, known)
        began = time.perf_counter()
        note = subject.pace(seconds)
        values: dict[str, Tensor] = {}
        for place, split in enumerate(SPLITS):
            told("asking", place, len(SPLITS), split)
            values |= {f"{split}.{name}": value.contiguous() for name, value in subject.asked(split).items()}
        write_bytes(folder / FILE, save(values))
        faultpoint("mine:asked")
        kept = {"most": subject.most, "notes": [note] if note else []}
        commit(folder, known, result={**kept, "seconds": round(time.perf_counter() - began, 2)})
        found = committed(folder, known)
        assert found is not None
    kept = found["result"]
    subject.limit(kept["most"])
    by_split: dict[str, dict[str, Tensor]] = {split: {} for split in SPLITS}
    for key, value in load((folder / FILE).read_bytes()).items():
        split, _, name = key.partition(".")
        by_split[split][name] = value
    subject.keep(by_split)
    return list(kept["notes"]), float(kept["seconds"])
