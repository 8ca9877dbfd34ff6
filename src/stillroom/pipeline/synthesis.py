"""The synthetic examples of a run: made once for all arms that learn from them, kept, and given to those arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stillroom.cache import cached, from_cache, publish
from stillroom.contracts import Finding, Source
from stillroom.dataset_distillation.making import CHECKPOINT, Real, make_examples, making_print
from stillroom.dataset_distillation.synthetic import load_synthetic, save_synthetic, synthetic_rows, with_synthetic
from stillroom.files import (
    begin,
    commit,
    committed,
    faultpoint,
    fingerprint,
    read_json,
    write_json,
)
from stillroom.fingerprints import MAKERS, code_print
from stillroom.pipeline.plan import ALONE, ArmPlan, Experiment, SynthesisPlan, Told
from stillroom.report import run_synthetic

FILE, CURVE = "images.npz", "curve.json"
MOST_CLASSES, MOST_EACH = 20, 10  # that the report shows


def owner_of(experiment: Experiment, arm: ArmPlan) -> str:
    """Return the arm whose name the examples bear: the first of those that want the very same."""
    assert arm.distilled is not None
    wanted = (arm.distilled.described, arm.labels)
    return next(
        name
        for name, one in experiment.arms.items()
        if one.distilled is not None and (one.distilled.described, one.labels) == wanted
    )


def examples_folder(run: Path, owner: str) -> Path:
    """Return where a run keeps synthetic examples."""
    return run / "distilled-data" / owner


def examples_inputs(experiment: Experiment, arm: ArmPlan) -> str:
    """Return the fingerprint of everything that synthetic examples depend on."""
    plan = _plan(arm)
    return fingerprint(
        {
            "code": code_print((*MAKERS, "dataset_distillation")),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "making": making_print(arm.seen(experiment.data), plan.settings),
            "network": dict(plan.described),
        }
    )


def make_arm_examples(experiment: Experiment, owner: str, run: Path, told: Told) -> None:
    """Make the examples of an arm into the run folder, unless they are there or in the cache."""
    arm, folder = experiment.arms[owner], examples_folder(run, owner)
    inputs = examples_inputs(experiment, arm)
    if committed(folder, inputs) is not None:
        return
    begin(folder, inputs)
    if from_cache("distilled-data", folder, inputs):
        return
    plan, seen = _plan(arm), arm.seen(experiment.data)
    made = make_examples(seen, plan.make_network, plan.settings, encode=plan.encode, folder=folder, progress=told)
    save_synthetic(with_synthetic(experiment.data, made.inputs, made.labels), folder / FILE)
    faultpoint("examples:saved")
    write_json(folder / CURVE, made.curve)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    commit(folder, inputs)
    publish(folder, cached("distilled-data", inputs), inputs)


def examples_are_ready(experiment: Experiment, owner: str, run: Path) -> bool:
    """Whether the examples of an arm stand in the run folder, made as they would be made now."""
    return committed(examples_folder(run, owner), examples_inputs(experiment, experiment.arms[owner])) is not None


def with_examples(experiment: Experiment, arm: ArmPlan, run: Path) -> ArmPlan:
    """Return the arm with its examples at hand, where it learns from synthetic ones."""
    if arm.distilled is None:
        return arm
    made = load_synthetic(experiment.data, examples_folder(run, owner_of(experiment, arm)) / FILE)
    return replace(arm, distilled=replace(arm.distilled, made=made))


def seconds_of_examples(experiment: Experiment, owner: str) -> tuple[int, float]:
    """Return how many steps an arm's examples take, and the seconds of one on one thread."""
    import time

    arm = experiment.arms[owner]
    plan, threads = _plan(arm), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seen, moments = arm.seen(experiment.data), [time.process_time()]
        make_examples(
            seen,
            plan.make_network,
            plan.settings.model_copy(update={"steps": 2}),
            encode=plan.encode,
            progress=lambda *_: moments.append(time.process_time()),
        )
    finally:
        torch.set_num_threads(threads)
    return plan.settings.steps, min(later - sooner for sooner, later in zip(moments[1:], moments[2:], strict=False))


def measured_examples(experiment: Experiment, run: Path) -> dict[str, Any]:
    """Return what metrics.json says of synthetic examples, by arm: how many of how many, and where they lie."""
    found = {}
    for name, arm in experiment.arms.items():
        if arm.distilled is None:
            continue
        owner = owner_of(experiment, arm)
        curve = read_json(examples_folder(run, owner) / CURVE)
        found[name] = {
            "examples": arm.distilled.examples,
            "per_class": arm.distilled.settings.per_class,
            "made_from": len(Real.of(arm.seen(experiment.data), 1).inputs),
            "file": str(examples_folder(Path(), owner) / FILE),
            "distance": {"first": curve["distance"][0], "last": curve["distance"][-1]},
        }
    return found


def examples_findings(experiment: Experiment, run: Path, metrics: Mapping[str, Any]) -> list[Finding]:
    """Return what the report shows of synthetic examples: one finding for each set of them."""
    found = []
    for name, facts in metrics.get("distilled_data", {}).items():
        arm = experiment.arms[name]
        owner = owner_of(experiment, arm)
        if owner != name:
            continue
        source = load_synthetic(experiment.data, examples_folder(run, owner) / FILE)
        scores = {
            who: metrics["models"][key]["score"]["mean"]
            for who, key in (("made", name), ("real", ALONE), ("all", "teacher"))
            if "score" in metrics["models"].get(key, {})
        }
        if metrics["main"] != name:  # the control has as many examples as the first arm, not as this one
            scores.pop("real", None)
        path = str(examples_folder(run, owner) / FILE)
        found.append(run_synthetic.synthetic_examples(name, facts, scores, _strips(arm, source, experiment.data), path))
    return found


def _strips(arm: ArmPlan, made: Source, real: Source) -> list[dict[str, Any]]:
    """A few examples of each class, those made and real ones, as lists of pixels; nothing where they are no images.

    With the real examples that the making may begin with, so that one sees what became of them.
    """
    plan = _plan(arm)
    inputs, labels = synthetic_rows(made)
    if inputs.dtype != torch.uint8 or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return []
    originals = Real.of(arm.seen(real), 1)
    strips = []
    for number, name in list(enumerate(real.classes or ()))[:MOST_CLASSES]:
        ours = inputs[labels == number][:MOST_EACH]
        theirs = originals.examples(number, plan.settings.per_class, plan.settings.seed, "start")[:MOST_EACH]
        pixels = [_side_by_side(part.to(torch.uint8)) for part in (ours, theirs)]
        strips.append({"class": str(name), "pixels": pixels, "each": len(ours)})
    return strips


def _side_by_side(images: Tensor) -> list[Any]:
    """One strip (H, W, C) of images (N, C, H, W), a white line of a pixel between them."""
    parted = functional.pad(images, (0, 1), value=255)
    strip: list[Any] = torch.cat(list(parted), 2)[:, :, :-1].permute(1, 2, 0).tolist()
    return strip


def _plan(arm: ArmPlan) -> SynthesisPlan:
    assert arm.distilled is not None
    return arm.distilled
