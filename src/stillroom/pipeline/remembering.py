"""What the recurrent networks of a run remember of their input: whether memory was passed on with the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stillroom.errors import DataError
from stillroom.evaluate import plain_ids
from stillroom.files import begin, commit, committed, fingerprint
from stillroom.fingerprints import code_print
from stillroom.memory import Remembers, memory_of, recurrent_path
from stillroom.models.bundle import load
from stillroom.paths import is_file
from stillroom.pipeline.plan import Experiment, Told
from stillroom.pipeline.teaching import trained
from stillroom.randomness import permutation

ROWS = 512
RANDOM = "random weights"


def memory_of_run(experiment: Experiment, run: Path, told: Told) -> dict[str, Any] | None:
    """Return what every recurrent student remembers, beside the teacher where it is recurrent too, and random weights.

    None where the student has no recurrent memory. What was found is kept in ``memory/`` and not asked again.
    """
    main = experiment.main
    if recurrent_path(main.make_student(0)) is None:
        return None
    folders = {name: [run / "arms" / f"{name}-{seed}" for seed in experiment.seeds] for name in experiment.arms}
    notes = {
        name: [(one / "done.json").read_text(encoding="utf-8") for one in parts] for name, parts in folders.items()
    }
    asking = code_print(("memory", "taps", "pipeline/remembering.py"))
    inputs = fingerprint({"asking": asking, "students": notes, "teacher": _teacher_note(run)})
    folder = run / "memory"
    if (found := committed(folder, inputs)) is not None:
        return found["result"] or None
    begin(folder, inputs)
    told(0, 2, "what is remembered")
    result = _asked(experiment, run, folders)
    commit(folder, inputs, result=result)
    return result


def _asked(experiment: Experiment, run: Path, folders: dict[str, list[Path]]) -> dict[str, Any] | None:
    models: dict[str, list[Remembers]] = {}
    plan = experiment.teachers.get("")
    if plan is not None and plan.make is not None:
        module, encode = trained(experiment, "", run)
        models["teacher"] = [Remembers(module.eval(), encode)]
    for name, arm in experiment.arms.items():
        if arm.config == experiment.main.config:  # other students have other memories
            parts = [load(one, model=arm.make_student(0), encode=arm.encode) for one in folders[name]]
            models[name] = [Remembers(part.model, part.encode) for part in parts]
    main = experiment.main
    models[RANDOM] = [Remembers(main.make_student(seed).eval(), main.encode) for seed in experiment.seeds]
    train = experiment.data.splits["train"]
    rows = train[torch.from_numpy(permutation(len(train), 0, "memory")[:ROWS].copy())]
    inputs = experiment.data.batch(plain_ids(rows))["inputs"]
    # no longer than what they were trained on
    length = inputs.shape[-2] if inputs.dim() >= 3 else getattr(main.encode, "longest", None)
    try:
        return memory_of(models, inputs, length=length)
    except DataError:  # nothing to ask: inputs that never change, or a memory behind layers that shorten time
        return None


def _teacher_note(run: Path) -> str:
    place = run / "teacher" / "done.json"
    return place.read_text(encoding="utf-8") if is_file(place) else ""
