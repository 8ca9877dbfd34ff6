"""What comes before the last part of a training.

Earlier parts of the same student, and assistants between it and the teacher.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from stillroom.contracts import Teacher
from stillroom.errors import Damaged
from stillroom.files import write_bytes
from stillroom.learner import Learner
from stillroom.paths import is_file
from stillroom.pipeline.plan import ArmPlan, Experiment, Told
from stillroom.record import record
from stillroom.teachers import Live
from stillroom.tensors import pack, restore, state_of, unpack
from stillroom.train import train


def pass_through(
    experiment: Experiment,
    arm: ArmPlan,
    seed: int,
    factor: float,
    folder: Path,
    student: nn.Module,
    teacher: Teacher | None,
    told: Told,
) -> Teacher | None:
    """Do every stage before the last; return the teacher of what follows: the last assistant, or the one given.

    A stage without a student of its own trains ``student`` further; one with a student makes an *assistant* (Mirzadeh
    et al. 2020, https://arxiv.org/abs/1902.03393), which is asked once and then teaches. What is done is not done
    again.
    """
    for number, stage in enumerate(arm.before, 1):
        part = folder / f"stage-{number}"
        module = stage.make_student(seed) if stage.assistant else student
        done = part / "model.safetensors"
        if is_file(done):
            restore(module, unpack(done, error=Damaged)[0], source=str(done))
        else:
            _train(experiment, stage, seed, 1.0 if stage.assistant else factor, part, module, teacher, told)
            write_bytes(done, pack(state_of(module)))
        if stage.assistant:
            teacher = _ask(experiment, arm, number, stage, part, module)
    return teacher


def _train(
    experiment: Experiment,
    stage: ArmPlan,
    seed: int,
    factor: float,
    part: Path,
    module: nn.Module,
    teacher: Teacher | None,
    told: Told,
) -> None:
    data = stage.data(experiment.data)
    settings = stage.settings(data, factor)
    modes = [(one, one.training) for one in module.modules()]
    learner = Learner(module, stage.objectives(), encode=stage.encode, precision=settings.precision)
    for step in train(
        learner,
        data,
        teacher if stage.distils else None,
        settings,
        rows=stage.rows(data),
        views=experiment.views,
        seed=seed,
        folder=part,
    ):
        if step.number % 5 == 0 or step.number in (1, step.steps):
            told(step.number, step.steps, f"steps of {stage.name}, loss {float(step.losses['loss']):.3f}")
    for one, mode in modes:  # the next part is to find what is frozen
        one.training = mode


def _ask(experiment: Experiment, arm: ArmPlan, number: int, stage: ArmPlan, part: Path, module: nn.Module) -> Teacher:
    """Record what an assistant shows through every tap that the stages after it read."""
    taps = arm.taps_after(number)
    with torch.no_grad():
        return record(
            Live(module, taps, encode=stage.encode),
            experiment.data,
            part / "knowledge",
            views=experiment.views,
            order_by=getattr(experiment.data, "lengths", None),  # as for a teacher
            taps=taps,
            fingerprints={"data": str(experiment.data.fingerprint)},
            classes=experiment.data.classes,
        )
