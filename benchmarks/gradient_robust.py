"""Is robustness passed on? A student of an adversarially trained teacher, asked on clean or on attacked images.

The teacher is trained on attacked images (PGD). Its students, but for the first, see its answers and no label; from the
same weights and in the same order they learn in six ways:

* alone: labels instead of the teacher, clean images;
* kd: the teacher's answers on clean images, the usual way;
* noise: on images with uniform noise as large as an attack may be, the control that costs nothing;
* adversarial: a share of each batch is attacked against the student as it is, and the teacher is asked at the same
  images (in the spirit of AdaAD, Huang et al. 2023, and ARD, Goldblum et al. 2020);
* igdm: the same, and both models' answers change alike from the attacked image to its mirror image (Lee, Cho and Kim);
* all attacked: adversarial with every row of a batch attacked, what igdm's cost could be spent on instead.

How much of a batch is attacked is chosen on validation images, with seeds that are not measured: the largest of the
shares whose clean accuracy stays near that of kd. Robust means right on the clean image and after PGD with 20 steps and
a random start.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stillroom.attacks import PGD, under_attack
from stillroom.contracts import Source
from stillroom.data.arrays import ArraySource
from stillroom.data.table import open_source
from stillroom.evaluate import plain_ids
from stillroom.learner import Learner
from stillroom.models.encode import encode_for
from stillroom.models.zoo import build, parameters
from stillroom.objectives import match
from stillroom.randomness import forked
from stillroom.settings import Training
from stillroom.statistics import over_seeds, paired
from stillroom.teachers import Live
from stillroom.train import train

EPSILON, LEVELS = 8 / 255, "8/255 of the pixels' range"
SIDE, BATCH, CLASSES = 14, 128, 10
TEACHER, STUDENT = 32, 12  # widths of the zoo's cnn
TEACHER_STEPS, STEPS, RATE = 1000, 800, 3e-3
INNER, OUTER, MORE, TESTED = 3, 20, 100, 1000  # steps of the attack in training, measured, once more; images
SHARES, NEAR = (0.25, 0.125, 0.0625), 0.0025  # of a batch that may be attacked; clean accuracy that it may cost
CHOOSING = (20, 21, 22, 23, 24)  # seeds
ALIKE = 0.1  # the weight of igdm's term: chosen on validation with other seeds, for a share of a quarter
TAP = "logits@gradient(along=direction,step=1)"
GAIN, LOSS = 5.0, -0.5  # the marks, in points
WAYS = ("alone", "kd", "noise", "adversarial", "igdm", "all attacked")
TEACHERS_SEED = 7


@dataclass
class Setting:
    """What all students share: images, how they are encoded, the teacher, and how many steps are taken."""

    data: Source
    encode: nn.Module
    teacher: nn.Module
    steps: int
    tested: int
    share: float = SHARES[0]

    def live(self, *taps: str) -> Live:
        """Return the teacher as one that answers at whatever images it is given."""
        return Live(self.teacher, taps, encode=self.encode)


# --- the task ----------------------------------------------------------------------------------------


def images() -> ArraySource:
    """Return the shipped Fashion-MNIST at half its size: the mean of two by two pixels."""
    whole = open_source("fashion-mnist-sample")
    rows = torch.arange(len(whole))
    batch = whole.batch(plain_ids(rows))
    small = torch.nn.functional.avg_pool2d(batch["inputs"].float(), 28 // SIDE).round().to(torch.uint8)
    return ArraySource(small, batch["labels"], classes=whole.classes, splits=dict(whole.splits), name="half-size")


def network(width: int, seed: int) -> nn.Module:
    """Return the zoo's cnn with weights of this seed."""
    with forked(seed, "weights"):
        return build("cnn", shape=(1, SIDE, SIDE), classes=CLASSES, width=width)


def setting(quick: bool) -> Setting:
    """Make the images and train the teacher on attacked ones."""
    data = images()
    encode = encode_for(data)
    assert encode is not None
    teacher = network(TEACHER, TEACHERS_SEED)
    attack = PGD(EPSILON, steps=INNER, encode=encode)
    learner = Learner(teacher, [match("labels")], encode=encode)
    steps = 20 if quick else TEACHER_STEPS
    for _ in train(learner, data, None, _training(steps), prepare=attack, seed=TEACHERS_SEED):
        pass
    return Setting(data, encode, teacher.eval(), 20 if quick else STEPS, 250 if quick else TESTED)


def _training(steps: int) -> Training:
    return Training(steps=steps, batch=BATCH, lr=RATE, weight_decay=0.01, warmup=0.05, gradient_norms_every=0)


def student(way: str, made: Setting, seed: int) -> nn.Module:
    """Train a student and return it."""
    module = network(STUDENT, seed)
    learner, teacher, attack = _parts(way, module, made)
    for _ in train(learner, made.data, teacher, _training(made.steps), prepare=attack, seed=seed):
        pass
    return module


def _parts(way: str, module: nn.Module, made: Setting) -> tuple[Learner, Live | None, PGD | None]:
    if way == "alone":
        return Learner(module, [match("labels")], encode=made.encode), None, None
    objectives, taps = [match("kd", temperature=1.0)], ["logits"]
    if way == "igdm":
        taps.append(TAP)
        objectives.append(match("directional_derivative", TAP, TAP, weight=ALIKE, batch_share=1.0, part=made.share))
    attack = None
    if way == "noise":
        attack = PGD(EPSILON, steps=0)
    elif way != "kd":
        share = 1.0 if way == "all attacked" else made.share
        attack = PGD(EPSILON, steps=INNER, encode=made.encode, share=share)
    return Learner(module, objectives, encode=made.encode), made.live(*taps), attack


def operations(way: str, made: Setting) -> int:
    """Return the floating-point operations of one step: attack, teacher, student and its backward pass."""
    learner, teacher, attack = _parts(way, network(STUDENT, 0), made)
    batch = made.data.batch(plain_ids(made.data.splits["train"][:BATCH]))
    learner.train()
    with FlopCounterMode(display=False) as counter, forked(0):
        seen = batch if attack is None else attack(learner.student, batch)
        learner(seen, {} if teacher is None else teacher(seen))["loss"].backward()
    return int(counter.get_total_flops())


def right(module: nn.Module, made: Setting, split: str, steps: int = OUTER) -> tuple[Tensor, Tensor]:
    """Return for each tested image whether the model is right, and whether it is right under attack too."""
    attack = PGD(EPSILON, steps=steps, encode=made.encode)
    return under_attack(module, made.data, attack, split=split, limit=made.tested)


def chosen(made: Setting, seeds: Sequence[int], tell: Callable[[str], None]) -> tuple[float, dict[str, Any]]:
    """Return the share of a batch that is attacked, and what it was chosen by: on validation images, other seeds."""

    def mean(way: str, share: float) -> list[float]:
        setting = replace(made, share=share)
        found = [right(student(way, setting, seed), made, "validation") for seed in seeds]
        return [float(torch.stack([one[kind].double() for one in found]).mean()) for kind in (0, 1)]

    kd = mean("kd", SHARES[0])
    tried = {share: mean("adversarial", share) for share in SHARES}
    tell(f"robust: chosen on validation: kd {kd}, shares {tried}")
    near = [share for share in SHARES if kd[0] - tried[share][0] <= NEAR]
    told = {"seeds": list(seeds), "kd": kd, "shares": {str(share): one for share, one in tried.items()}}
    return (near or SHARES[-1:])[0], told


# --- the comparison ------------------------------------------------------------------------------------


def run(seeds: Sequence[int], quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train the teacher once and every way with every seed; return plain JSON."""
    began = time.monotonic()
    made = setting(quick)
    tell(f"robust: teacher trained ({time.monotonic() - began:.0f} s)")
    share, told_of_share = chosen(made, CHOOSING[:2] if quick else CHOOSING, tell)
    made = replace(made, share=share)
    cost = {way: operations(way, made) for way in WAYS}
    held: dict[str, list[tuple[Tensor, Tensor]]] = {way: [] for way in WAYS}
    stronger: dict[str, float] = {}
    for seed in seeds:
        for way in WAYS:
            module = student(way, made, seed)
            held[way].append(right(module, made, "test"))
            if seed == seeds[0]:
                stronger[way] = float(right(module, made, "test", MORE)[1].double().mean())
        told = ", ".join(f"{way} {_both(held[way][-1])}" for way in WAYS)
        tell(f"robust: seed {seed}, clean/robust {told} ({time.monotonic() - began:.0f} s)")
    asked = right(made.teacher, made, "test")
    arrays = {
        way: [np.stack([one[kind].double().numpy() for one in found]) for kind in (0, 1)] for way, found in held.items()
    }
    return {
        "title": f"Fashion-MNIST at {SIDE} x {SIDE} pixels, 8,000 training images",
        "epsilon": LEVELS,
        "attack": f"PGD-{OUTER} with random start on {made.tested} test images, PGD-{INNER} in training",
        "seeds": list(seeds),
        "settings": {"steps": made.steps, "share": share, "alike": ALIKE, "batch": BATCH, "rate": RATE},
        "choosing": told_of_share,
        "teacher": {"clean": float(asked[0].double().mean()), "robust": float(asked[1].double().mean())},
        "parameters": {"teacher": parameters(made.teacher), "student": parameters(network(STUDENT, 0))},
        "cost": {way: cost[way] / cost["kd"] for way in WAYS},
        "ways": {way: _scores(found, arrays["kd"]) for way, found in arrays.items()},
        "igdm - adversarial": _gains(arrays["igdm"], arrays["adversarial"]),
        "adversarial - noise": _gains(arrays["adversarial"], arrays["noise"]),
        "igdm - all attacked": _gains(arrays["igdm"], arrays["all attacked"]),
        "stronger": {"steps": MORE, "robust": stronger},
    }


def _both(found: tuple[Tensor, Tensor]) -> str:
    return "/".join(f"{100 * float(one.double().mean()):.1f}" for one in found)


def _scores(found: list[Any], kd: list[Any]) -> dict[str, Any]:
    each = {name: found[kind].mean(1).tolist() for kind, name in enumerate(("clean", "robust"))}
    return each | {"over kd": _gains(found, kd)}


def _gains(one: list[Any], other: list[Any]) -> dict[str, Any]:
    return {name: paired(one[kind], other[kind]).plain() for kind, name in enumerate(("clean", "robust"))}


# --- telling -------------------------------------------------------------------------------------------


def _points(gain: Mapping[str, Any]) -> str:
    if gain["low"] is None:
        return f"{100 * gain['mean']:+.2f}"
    return f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"


def page(result: dict[str, Any]) -> list[str]:
    """Return the table and what it says, as lines of markdown."""
    sizes, settings = result["parameters"], result["settings"]
    lines = [
        "## Is robustness passed on?",
        "",
        f"{result['title']}; {result['attack']}; epsilon {result['epsilon']}. An adversarially trained teacher of "
        f"{sizes['teacher']:,} parameters, students of {sizes['student']:,}, {settings['steps']} steps, "
        f"{len(result['seeds'])} paired seeds; {100 * settings['share']:.0f} % of each batch is attacked, all of it in "
        "`all attacked`. Robust: right on the clean image and under attack. Over kd: points, the wider of Student's t "
        "over seeds and a bootstrap over test images, 95 %. Cost: floating-point operations a step, with those of "
        "attack and teacher, relative to kd.",
        "",
    ]
    head = ("student", "clean", "robust", "clean over kd", "robust over kd", "cost")
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    told = result["teacher"]
    lines.append(f"| teacher | {100 * told['clean']:.2f} | {100 * told['robust']:.2f} | | | |")
    for way, held in result["ways"].items():
        scores = [f"{100 * over_seeds(held[kind]).mean:.2f}" for kind in ("clean", "robust")]
        gains = ["", ""] if way == "kd" else [_points(held["over kd"][kind]) for kind in ("clean", "robust")]
        row = [way, *scores, *gains, f"{result['cost'][way]:.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    return [*lines, "", *_sentences(result)]


def _sentences(result: dict[str, Any]) -> list[str]:
    choosing = result["choosing"]
    tried = ", ".join(
        f"{float(share):g}: {100 * (clean - choosing['kd'][0]):+.2f} clean, "
        f"{100 * (hard - choosing['kd'][1]):+.2f} robust"
        for share, (clean, hard) in choosing["shares"].items()
    )
    igdm, every, noise = (result[name] for name in ("igdm - adversarial", "igdm - all attacked", "adversarial - noise"))
    cost, stronger = result["cost"], result["stronger"]
    told = ", ".join(f"{way} {100 * share:.1f}" for way, share in stronger["robust"].items())
    return [
        f"The share was chosen on validation images (seeds {choosing['seeds']}), points over kd by share: {tried}; the "
        f"largest is taken that costs at most {100 * NEAR:g} points of clean accuracy.",
        f"Robust accuracy of adversarial over noise: {_points(noise['robust'])} points.",
        f"What igdm adds to adversarial, at {cost['igdm'] / cost['adversarial']:.2f} times its cost: "
        f"{_points(igdm['robust'])} points robust ({_verdict(igdm['robust'])}), {_points(igdm['clean'])} clean "
        f"({_verdict(igdm['clean'])}). To all attacked, at {cost['igdm'] / cost['all attacked']:.2f} times the cost: "
        f"{_points(every['robust'])} robust ({_verdict(every['robust'])}), {_points(every['clean'])} clean "
        f"({_verdict(every['clean'])}).",
        f"Robust accuracy under one attack is an upper bound; PGD-{stronger['steps']} leaves the first seed's students "
        f"{told}.",
        "",
    ]


def _verdict(gain: Mapping[str, Any]) -> str:
    if gain["low"] is None or gain["low"] <= 0 <= gain["high"]:
        return "not told apart from 0"
    return "above 0" if gain["low"] > 0 else "below 0"


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the marks: name, target, measured, met."""
    gains = result["ways"]["adversarial"]["over kd"]
    robust, clean = (100 * gains[kind]["mean"] for kind in ("robust", "clean"))
    return [
        {
            "name": f"robust accuracy over kd (PGD-{OUTER}, {result['epsilon']})",
            "target": f"at least +{GAIN:g} points",
            "measured": _points(gains["robust"]),
            "met": robust >= GAIN,
        },
        {
            "name": "clean accuracy over kd of the same student",
            "target": f"at worst {LOSS:g} points",
            "measured": _points(gains["clean"]),
            "met": clean >= LOSS,
        },
    ]


def main() -> None:
    """Run this part alone and print its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps: scores mean nothing")
    parser.add_argument("--json", help="write the plain result to this file", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(range(2 if options.quick else 5), options.quick, lambda line: print(line, flush=True))
    print("\n".join(page(result)))
    for mark in marks(result):
        print(mark)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)


if __name__ == "__main__":
    main()
