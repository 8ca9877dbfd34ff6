"""What can be said of an experiment before anything is trained: do taps and shapes fit, and what will it cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from stillroom.contracts import Signals
from stillroom.errors import DataError, say
from stillroom.evaluate import plain_ids
from stillroom.learner import Learner
from stillroom.models.open_box import count_parameters
from stillroom.pipeline.plan import ArmPlan, Experiment
from stillroom.pipeline.teaching import taps_are_known
from stillroom.record import estimate
from stillroom.teachers import Live

ROWS = 4


def check_shapes(experiment: Experiment) -> dict[str, str]:
    """Read a few rows with the untrained models and size every arm's objectives on them; return what was seen.

    Raises:
        UserError: a tap is not in its model, shapes do not fit, or there are too few rows.
    """
    data = experiment.data
    for name in ("train", "validation", "test"):
        if len(data.splits.get(name, ())) == 0:
            raise DataError(say(f"The data has no {name} rows", "0", "at least 1", "Choose another split or more data."))
    batch = data.batch(plain_ids(data.splits["train"][:ROWS]))
    shown: Signals = {}
    for name, plan in experiment.teachers.items():
        if plan.make is None:
            continue
        module = plan.make()
        taps_are_known(experiment, name, module, plan.encode)
        answers = Live(module, experiment.taps(name), encode=plan.encode)(batch)
        shown |= {f"{name}/{key}" if name else key: value for key, value in answers.items()}
        if name:
            shown["logits"] = answers["logits"]
    facts = {"data": ", ".join(f"{len(rows):,} {name}" for name, rows in data.splits.items())}
    for name, arm in experiment.arms.items():
        facts[name] = _arm(arm, experiment, batch, shown)
    return facts


def _arm(arm: ArmPlan, experiment: Experiment, batch: Mapping[str, Any], shown: Signals) -> str:
    student = copy.deepcopy(arm.make_student(0))
    learner = Learner(student, arm.objectives(), encode=arm.encode)
    if not arm.reads_teacher or shown:
        extra = {f"{name}.bank": shown[name][:2] for name in learner.banks}
        extra |= {f"{name}.bank.mask": torch.ones(ROWS, 2, dtype=torch.bool) for name in learner.banks}
        learner.size(dict(batch), shown | extra)
    visible = arm.data(experiment.data)
    settings, rows = arm.settings(visible), arm.rows(visible)
    transfer = "" if rows.transfer is None else f" + transfer set of {len(rows.transfer):,}"
    terms = ", ".join(f"{weight:g} {name}" for name, weight in learner.weights().items())
    return (
        f"{count_parameters(student):,} parameters, {terms}; {settings.steps:,} steps of {settings.rows} from "
        f"{len(rows.labelled):,} rows{transfer}"
    )


def expectations(experiment: Experiment) -> dict[str, str]:
    """Return the bytes that recording will write, for ``--plan``."""
    found = {}
    for name, plan in experiment.teachers.items():
        if plan.make is None:
            continue
        taps = experiment.taps(name)
        weight = estimate(Live(plan.make(), taps, encode=plan.encode), experiment.data, views=experiment.views, taps=taps)
        text = f"{weight.rows:,} rows of {', '.join(taps)}, {experiment.views} views: {weight.bytes / 1e6:.1f} MB"
        found[f"record {name}".strip()] = text
    return found

