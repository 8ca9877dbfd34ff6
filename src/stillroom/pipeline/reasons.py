"""When distilling did not help: what the numbers of the run itself make likely, each with what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stillroom.contracts import Finding
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment
from stillroom.pipeline.teacher_check import ready_made
from stillroom.statistics import points
from stillroom.tasks import by_rows

SMALL_LEAD = 0.02  # a teacher less than two points ahead has little to give
FAR_FROM_TEACHER = 0.85  # agreement below which a student has not got what it was shown
SURE = 0.98  # a teacher this sure of itself on average shows hardly more than its labels
FLAT = 0.9  # share of the largest entropy from which softened answers say hardly anything


def why_not(experiment: Experiment, metrics: Mapping[str, Any], told: Tensor | None) -> Finding | None:
    """Return the likely reasons why the first arm did not beat the control.

    None when it did, or nothing was compared.
    """
    gain = metrics.get("score_gain")
    if gain is None or told is None or (gain["low"] is not None and gain["low"] > 0):
        return None
    models, arm = metrics["models"], experiment.main
    lead = models["teacher"]["score"]["mean"] - models[ALONE]["score"]["mean"]
    reasons = [
        *_weak_teacher(experiment, lead, metrics.get("teacher_check")),
        *_distilled(arm),
        *_enough_labels(experiment, arm, lead),
        *_temperature(arm, told),
        *_capacity(models["distilled"].get("agreement"), lead),
    ]
    if not reasons:
        reasons = [
            "Nothing in this run explains it. More seeds may tell chance from effect; so may more steps for both."
        ]
    alone, teacher = (100 * models[name]["score"]["mean"] for name in (ALONE, "teacher"))
    control = f"the student alone, {alone:.1f} %, and the teacher, {teacher:.1f} %."
    text = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return Finding("Why it did not help", reasons[0], lead, control, {"kind": "text", "text": text})


def _weak_teacher(experiment: Experiment, lead: float, suspicious: str | None) -> list[str]:
    if suspicious is not None:
        return [suspicious]
    if lead >= SMALL_LEAD:
        return []
    weak = f"it leads it by {points(lead)} only" if lead > 0 else f"it is not ahead of it ({points(lead)})"
    better = "Take a larger one" if ready_made(experiment) else "Train the teacher longer, take a larger one"
    return [
        f"The teacher is weak for this student: {weak}, so there is little to pass on. "
        f"{better}, or give it labels that the student does not have."
    ]


def _distilled(arm: ArmPlan) -> list[str]:
    if arm.distilled is None:
        return []
    making = arm.distilled.settings
    reason = (
        f"The examples that were made, {making.per_class} a class, are worth no more than as many real ones. They pay "
        f"where there may be few: try fewer, more than {making.steps} steps, or another lr."
    )
    if making.per_class > 1 and not making.between:
        reason += " With several a class it helps most to train the networks in between: renew: 10, between: 10."
    return [reason]


def _enough_labels(experiment: Experiment, arm: ArmPlan, lead: float) -> list[str]:
    rows = len(experiment.data.splits["train"])
    if arm.distilled is not None:
        return []
    if arm.labels is not None and arm.labels < rows:
        return []
    return [
        f"The student sees all {rows:,} labels itself, so the teacher can tell it little that they do not. "
        "Distilling pays with few labels and many unlabelled examples: set data.labels, or add a transfer set."
    ]


def _temperature(arm: ArmPlan, told: Tensor) -> list[str]:
    found = []
    for objective in (one for part in arm.own_parts for one in part.objectives()):
        temperature = objective.options.get("temperature", 4.0 if objective.loss.__name__ == "kd" else None)
        if objective.loss.__name__ not in ("kd", "lskd", "dkd") or temperature is None:
            continue
        entropy = float(by_rows(partial(_entropy, temperature), told).mean()) / math.log(told.shape[1])
        sure = float(by_rows(lambda part, t=temperature: (part.double() / t).softmax(1).amax(1), told).mean())
        if entropy > FLAT:
            found.append(
                f"At temperature {temperature:g} the teacher's answers are almost flat ({100 * entropy:.0f} % of the "
                "largest entropy), "
                f"and say hardly more than noise. Lower the temperature of '{objective.name}'."
            )
        elif sure > SURE:
            found.append(
                f"At temperature {temperature:g} the teacher is almost always sure ({100 * sure:.0f} % on average), "
                "and shows hardly more "
                f"than a label. Raise the temperature of '{objective.name}'."
            )
    return found


def _entropy(temperature: float, logits: Tensor) -> Tensor:
    soft = torch.softmax(logits.double() / temperature, 1)
    return -(soft * soft.clamp(min=1e-12).log()).sum(1)


def _capacity(agreement: Mapping[str, Any] | None, lead: float) -> list[str]:
    if agreement is None or agreement["mean"] >= FAR_FROM_TEACHER or lead < SMALL_LEAD:
        return []
    return [
        f"The student gives the teacher's answer on {100 * agreement['mean']:.0f} % of the test examples only: it "
        "could not "
        "follow. Give it more capacity or more steps, or raise the weight of the teacher's objectives."
    ]
