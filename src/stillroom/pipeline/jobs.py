"""One job: train a student by one arm, keep its best moment on validation, and what it answers on the test split."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.cache import cached, from_cache, publish
from stillroom.contracts import UNLABELLED, HasBank, Source, Step, Teacher
from stillroom.data.leaving_out import rows_print
from stillroom.data.splits import labels_print
from stillroom.errors import Damaged, TrainError, say
from stillroom.evaluate import BATCH, answer, plain_ids
from stillroom.files import (
    begin,
    commit,
    committed,
    copy_step,
    faultpoint,
    fingerprint,
    heal,
    read_sealed,
    write_bytes,
    write_json,
)
from stillroom.fingerprints import code_print
from stillroom.learner import Learner
from stillroom.models.bundle import save_bundle
from stillroom.paths import is_file
from stillroom.pipeline.plan import ArmPlan, Experiment, Told
from stillroom.pipeline.stages import pass_through
from stillroom.pipeline.synthesis import examples_inputs
from stillroom.settings import Training
from stillroom.tasks import accuracy
from stillroom.tensors import pack, restore, state_of, unpack
from stillroom.train import bank_rows, saves_after, train

LOGGED = 120  # moments of the training curve that are kept
NEAR_ZERO = 1e-3


def job_inputs(experiment: Experiment, arm: ArmPlan, seed: int, factor: float, knowledge: str) -> str:
    """Return the fingerprint of everything a job's result depends on."""
    data = arm.data(experiment.data)
    # What a job notes beside its answers is part of it; named only where asked for, so that others share the rest.
    also = {"weights": True} if _penalised(experiment) else {}
    return fingerprint(
        {
            **also,
            "code": code_print(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "data": experiment.data.fingerprint,
            "labels": labels_print(data),
            "splits": rows_print(data),
            "arm": dict(arm.described),
            **({"start": arm.starts[seed]} if seed in arm.starts else {}),
            **({"examples": examples_inputs(experiment, arm)} if arm.distilled else {}),
            "seed": seed,
            "factor": factor,
            "views": experiment.views,
            "knowledge": knowledge if arm.reads_teacher else None,
        }
    )


def train_job(
    experiment: Experiment,
    arm: ArmPlan,
    seed: int,
    factor: float,
    folder: Path,
    teacher: Teacher | None,
    inputs: str,
    told: Told,
) -> None:
    """Train ``arm`` with one seed and learning rate into ``folder``, unless it is there or in the cache already.

    A training that was stopped half-way goes on; where what it kept is damaged it is set aside and begun anew.
    """
    if committed(folder, inputs) is not None:
        return
    begin(folder, inputs)
    if arm.shared and from_cache("jobs", folder, inputs):
        return
    try:
        _train(experiment, arm, seed, factor, folder, teacher, told)
    except Damaged as error:
        heal(folder, error)
        begin(folder, inputs)
        _train(experiment, arm, seed, factor, folder, teacher, told)
    commit(folder, inputs)
    if arm.shared:
        publish(folder, cached("jobs", inputs), inputs)


def _train(
    experiment: Experiment, arm: ArmPlan, seed: int, factor: float, folder: Path, teacher: Teacher | None, told: Told
) -> None:
    data = arm.data(experiment.data)
    settings, rows = arm.settings(data, factor), arm.rows(data)
    student = arm.make_student(seed)
    teacher = pass_through(experiment, arm, seed, factor, folder, student, teacher, told)
    learner = Learner(student, arm.objectives(), encode=arm.encode, precision=settings.precision)
    total = settings.total_steps(len(rows.labelled))
    marks = sorted({max(1, round(part * total)) for part in settings.evaluate_at})
    log = _Log(folder / "curve.json", max(1, total // LOGGED))
    scored = _kept(folder / "marks.json", {})
    for step in train(
        learner,
        data,
        teacher if arm.distils else None,
        settings,
        rows=rows,
        views=experiment.views,
        seed=seed,
        folder=folder,
    ):
        log.add(step)
        if saves_after(settings, step.number, step.steps):
            log.save()  # before the checkpoint: a resumed training does not pass these steps again
        if step.number in marks and str(step.number) not in scored:
            score = _validate(student, data, arm) if arm.answers else None
            if score is None:
                score = _own_value(learner, data, teacher, seed)
            write_bytes(folder / f"mark-{step.number}.safetensors", pack(state_of(student)))
            scored[str(step.number)] = score
            write_json(folder / "marks.json", scored, sealed=True)
        if step.number % 5 == 0 or step.number in (1, total):
            told(step.number, total, f"steps, loss {float(step.losses['loss']):.3f}")
    log.save()
    if lost := [mark for mark in marks if str(mark) not in scored] or log.kept["step"][:1] != [1]:
        raise Damaged(f"Damaged folder: {folder} has a checkpoint, but not all that was kept before it ({lost})")
    _finish(experiment, arm, seed, factor, folder, student, scored, settings)


def _finish(
    experiment: Experiment,
    arm: ArmPlan,
    seed: int,
    factor: float,
    folder: Path,
    student: nn.Module,
    scored: dict[str, float],
    settings: Training,
) -> None:
    """Keep the best moment on validation (the earlier of equals), its answers, and throw the rest away."""
    best = max(sorted(map(int, scored)), key=lambda step: scored[str(step)])
    tensors, _ = unpack(folder / f"mark-{best}.safetensors", error=Damaged)
    restore(student, tensors)
    student.eval()
    data = experiment.data
    test, labels = answer(student, data, data.splits["test"], encode=arm.encode)
    if not bool(torch.isfinite(test).all()):
        do = "Lower train.lr or set train.clip, then run again."
        raise TrainError(say(f"The student of '{arm.name}' cannot answer", "NaN or infinite logits", "finite ones", do))
    write_bytes(folder / "answers.safetensors", pack({"test": test}))
    faultpoint("job:answers")
    save_bundle(folder, student, encode=arm.encode, config=dict(arm.config))
    curve = _kept(folder / "curve.json", {})
    scores = {
        "seed": seed,
        "factor": factor,
        "learning_rate": settings.lr,
        "chosen_step": best,
        "validation": scored[str(best)],
        "validation_by_step": scored,
        "notes": curve.get("notes", []),
    }
    if arm.answers and (score := _accuracy(test, labels)) is not None:
        scores["test"] = score
    if _penalised(experiment):
        scores["weights"] = _weights(student)
        scores["pruned"] = _pruned(student, data, arm)
    write_json(folder / "scores.json", scores, sealed=True)
    # In this order a kill in between leaves what can be trained again: marks are never missing while they are listed.
    for rest in [folder / "checkpoint.safetensors", folder / "marks.json", *sorted(folder.glob("mark-*.safetensors"))]:
        rest.unlink(missing_ok=True)
        faultpoint("job:tidied")
    for part in folder.glob("stage-*"):
        shutil.rmtree(part)


def choose(experiment: Experiment, arm: ArmPlan, trials: Path) -> float:
    """Return the learning-rate factor whose trial with the first seed was best on validation.

    The nearest to 1 of equals.
    """
    if len(experiment.trials) == 1:
        return float(experiment.trials[0])
    seed = experiment.seeds[0]
    scores = {
        factor: read_sealed(trials / f"{arm.name}-{seed}-x{factor:g}" / "scores.json")["validation"]
        for factor in experiment.trials
    }
    return max(sorted(scores, key=lambda factor: abs(factor - 1)), key=lambda factor: scores[factor])


def adopt(trial: Path, folder: Path, inputs: str) -> None:
    """Take a trial's result as the arm's result for its seed."""
    if committed(folder, inputs) is None:
        begin(folder, inputs)
        copy_step(trial, folder)
        commit(folder, inputs)


# --- pieces ---------------------------------------------------------------------------------------------


def _penalised(experiment: Experiment) -> bool:
    parts = [part for arm in experiment.arms.values() for part in arm.own_parts]
    return any(one.role == "penalty" for part in parts for one in part.objectives())


def _accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None or bool((labels == UNLABELLED).all()) else accuracy(logits, labels)


def _validate(student: nn.Module, data: Source, arm: ArmPlan) -> float | None:
    return _accuracy(*answer(student, data, data.splits["validation"], encode=arm.encode))


def _own_value(learner: Learner, data: Source, teacher: Teacher | None, seed: int) -> float:
    """What a student is chosen by without labels, or with logits that nobody trained: minus its validation losses.

    Their values are added without weights, which may ramp to nought; penalties on weights say nothing here.
    """
    names = [one.name for one in learner.objectives if one.role != "penalty"]  # type: ignore[union-attr]
    total, rows = 0.0, data.splits["validation"]
    learner.eval()
    with torch.no_grad():
        for number, part in enumerate(rows.split(BATCH)):
            batch = data.batch(plain_ids(part))
            shown = dict(teacher(batch)) if teacher is not None else {}
            if learner.banks and isinstance(teacher, HasBank):
                count = bank_rows(len(data.splits["train"]))
                shown |= teacher.bank(learner.banks, batch, rows=count, seed=seed, step=number)
            losses = learner(batch, shown)
            total -= len(part) * sum(float(losses[name]) for name in names)  # type: ignore[index]
    return total / max(1, len(rows))


class _Log:
    """The training curve, thinned to about :data:`LOGGED` moments, kept across a resume."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        pull = {"step": [], "cosine": [], "ratio": [], "looked": 0, "against": 0, "last": 0}
        self.kept: dict[str, Any] = _kept(path, {"step": [], "terms": {}, "norms": [], "notes": [], "pull": pull})

    def add(self, step: Step) -> None:
        kept = self.kept
        kept["notes"] += [note for note in step.notes if note not in kept["notes"]]
        self._pulled(step)
        if kept["step"] and kept["step"][-1] >= step.number:
            return
        norms = kept["norms"]
        if step.gradient_norms and len(step.gradient_norms) > 1:
            if not norms or step.number - norms[-1]["step"] >= self.every:
                norms.append({"step": step.number, **step.gradient_norms})
        if step.number % self.every == 0 or step.number in (1, step.steps):
            kept["step"].append(step.number)
            for name, value in step.losses.items():
                values = kept["terms"].setdefault(name, [None] * (len(kept["step"]) - 1))
                values.append(float(value))
            for values in kept["terms"].values():
                values += [None] * (len(kept["step"]) - len(values))

    def _pulled(self, step: Step) -> None:
        """Count each look at which both sides had a gradient, and keep about as many of them as of the losses."""
        pull = self.kept["pull"]
        if step.gradient_cosine is None or step.number <= pull["last"]:
            return
        pull["last"] = step.number
        pull["looked"] += 1
        pull["against"] += step.gradient_cosine < 0
        if not pull["step"] or step.number - pull["step"][-1] >= self.every:
            pull["step"].append(step.number)
            pull["cosine"].append(step.gradient_cosine)
            pull["ratio"].append(step.gradient_ratio)

    def save(self) -> None:
        """Keep the curve so far."""
        write_json(self.path, self.kept, sealed=True)


def _weights(student: nn.Module) -> list[dict[str, Any]]:
    """Norms of each weight tensor, and the share of its weights below a thousandth of its largest."""
    found = []
    for name, value in student.named_parameters():
        if value.dim() >= 2:
            size = value.detach().abs().double()
            found.append(
                {
                    "name": name,
                    "size": value.numel(),
                    "l1": float(size.sum()),
                    "l2": float(size.square().sum().sqrt()),
                    "share_near_zero": float((size < NEAR_ZERO * size.max()).double().mean()),
                }
            )
    return found


def _pruned(student: nn.Module, data: Source, arm: ArmPlan) -> float | None:
    """Test accuracy after the near-zero weights are set to 0; the student is as before afterwards."""
    before: dict[str, Tensor] = {name: value.clone() for name, value in state_of(student).items()}
    with torch.no_grad():
        for value in student.parameters():
            if value.dim() >= 2:
                value[value.abs() < NEAR_ZERO * value.abs().max()] = 0
    logits, labels = answer(student, data, data.splits["test"], encode=arm.encode)
    restore(student, before)
    return _accuracy(logits, labels)


def _kept(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """Return what an unfinished training kept, ``default`` where it kept nothing yet."""
    return read_sealed(path) if is_file(path) else default
