"""The export of a run: the distilled student (and the teacher, to compare with) as files that answer on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import MissingPart
from stillroom.evaluate import plain_ids
from stillroom.export import export, write_onnx
from stillroom.files import begin, commit, committed, fingerprint
from stillroom.models.bundle import Deployed, load
from stillroom.pipeline.plan import Experiment, Told
from stillroom.pipeline.teaching import trained
from stillroom.randomness import permutation

CALIBRATION = 256
COSTS = ("bytes", "latency_ms", "throughput_per_s")
CHECKED = 1000


def export_run(experiment: Experiment, run: Path, told: Told) -> dict[str, Any]:
    """Export the first arm's first seed and the teacher; return the facts of each, or why there are none."""
    student = run / "arms" / f"{experiment.main.name}-{experiment.seeds[0]}"
    note = (student / "done.json").read_text(encoding="utf-8")
    folder, inputs = run / "export", fingerprint({"student": note, "int8": experiment.int8, "onnx": experiment.onnx})
    found = committed(folder, inputs)
    if found is not None:
        return dict(found["facts"])
    begin(folder, inputs)
    facts: dict[str, Any] = {}
    examples, check = _rows(experiment)
    try:
        told(0, 2, "student")
        facts["student"] = _student(experiment, student, folder / "student", examples, check, told)
        if experiment.teachers and set(experiment.teachers) == {""} and experiment.teachers[""].make is not None:
            told(1, 2, "teacher")
            facts["teacher"] = _teacher(experiment, run, folder / "teacher", examples, check)
    except MissingPart as error:
        facts["missing"] = str(error)
    commit(folder, inputs, facts=facts)
    return facts


def _rows(experiment: Experiment) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    data = experiment.data
    train, test = data.splits["train"], data.splits["test"]
    chosen = train[torch.from_numpy(permutation(len(train), 0, "calibration")[:CALIBRATION])]
    batch = data.batch(plain_ids(test[:CHECKED]))
    return data.batch(plain_ids(chosen))["inputs"], (batch["inputs"], batch.get("labels"))


def _student(
    experiment: Experiment,
    source: Path,
    folder: Path,
    examples: Tensor,
    check: tuple[Tensor, Tensor | None],
    told: Told,
) -> dict[str, Any]:
    arm = experiment.main
    foreign = "use" not in arm.config.get("model", {})
    deployed = load(source, model=arm.make_student(0), encode=arm.encode) if foreign else load(source)
    if not experiment.onnx:
        from stillroom.models.bundle import save_bundle

        save_bundle(folder, deployed.model, encode=deployed.encode, config=dict(arm.config))
        return {"files": {}, "warnings": [], "note": "export.onnx is off"}
    return export(
        deployed, folder, examples=examples, check=check, config=dict(arm.config), int8=experiment.int8, progress=told
    )


def _teacher(
    experiment: Experiment, run: Path, folder: Path, examples: Tensor, check: tuple[Tensor, Tensor | None]
) -> dict[str, Any]:
    if not experiment.onnx:
        return {"files": {}}
    module, encode = trained(experiment, "", run)
    folder.mkdir(parents=True, exist_ok=True)
    facts = write_onnx(Deployed(module, encode).eval(), folder / "model.onnx", examples=examples, check=check)
    return {"files": {"model.onnx": facts}}


def add_costs(experiment: Experiment, metrics: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put file size, latency and throughput into metrics; arms with the first arm's student share its graph."""
    models, main = metrics["models"], experiment.main
    alike = [name for name, arm in experiment.arms.items() if arm.config == main.config]
    for who, names in (("teacher", ["teacher"]), ("student", [*alike, "distilled"])):
        graph = facts.get(who, {}).get("files", {}).get("model.onnx", {})
        for name in [name for name in names if name in models]:
            for key in COSTS:
                value = graph.get(key)
                models[name][key] = None if value is None else {"mean": value, "per_seed": [value]}
    for model in models.values():
        for key in COSTS:
            model.setdefault(key, None)
    if "missing" in facts:
        metrics["export"] = {"reason": facts["missing"]}


__all__ = ["add_costs", "export_run"]
