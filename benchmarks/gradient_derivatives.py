"""Does it help a student to match its teacher's derivatives? A smooth function known at 64 points, and 50 images.

Each arm chooses its rate, weight and noise on validation, with a seed that is not measured; then every seed is measured
once on test. All arms take as many floating-point operations on the student's side (PyTorch's counter; a plain step of
KD costs a half to a third of one with gradients, so that those arms take two to three times as many steps). What a live
teacher costs on top is told and not counted, in favour of the control: KD on noised inputs, a new noise at each step.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradient_arms import Arm, Choice, Task, images, operations, regression, student
from keeping import facts

from stillroom.statistics import over_seeds, paired

SEARCH = 1000
CASES: dict[str, Callable[[bool], Task]] = {
    "waves": lambda quick: regression("waves", quick),
    "friedman": lambda quick: regression("friedman", quick),
    "mlp": lambda quick: images("mlp", quick),
    "cnn": lambda quick: images("cnn", quick),
}
FUNCTIONS = ("waves", "friedman")
HALF, FIFTH, ALIKE = 0.5, 0.8, 0.7
RATIOS = (
    ("gradient / values", HALF, "gradients at 64 points to values there"),
    ("gradient / noised, 2 views recorded", FIFTH, "the same to noised KD, recorded, as dear to the teacher"),
    ("gradient / noised, recorded", FIFTH, "the same to noised KD, recorded, as many numbers"),
    ("gradient, noised live / noised, live", FIFTH, "gradients to noised KD, both with the teacher at work"),
)
COMPARED = {  # an arm, and what it is held against
    "error": (
        ("gradient", "values"), ("gradient", "noised, 2 views recorded"),
        ("gradient", "noised, recorded"), ("gradient", "noised, live"),
        ("directions", "noised, live"), ("gradient, noised live", "values"),
        ("gradient, noised live", "noised, live"),
    ),
    "accuracy": (
        ("kd", "alone"), ("gradient", "kd"), ("gradient", "kd, noised, 8 views recorded"),
        ("gradient", "kd, noised live"), ("gradient, noised live", "kd, noised live"), ("gradient cosine", "gradient"),
        ("directions", "kd"), ("explanation", "kd"), ("kd, all images, noised live", "kd, all images"),
        ("gradient, all images", "kd, all images"),
    ),
}  # fmt: skip


def run(seeds: Sequence[int], quick: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train all arms of all cases; returns plain values: choices, what was tried, scores by seed, differences."""
    return {"seeds": list(seeds), "quick": quick, "cases": {name: case(name, seeds, quick, tell) for name in CASES}}


def case(
    name: str, seeds: Sequence[int], quick: bool, tell: Callable[[str], None], kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train the arms of one case; those of ``kept`` whose recorded derivatives are not read keep their choices."""
    with tempfile.TemporaryDirectory() as folder:
        task = CASES[name](quick)
        task.more["operations"] = operations(task, folder)
        measured = " ".join(f"{key} {value:.4g}" for key, value in task.more["teacher"].items())
        tell(f"{task.title}: teacher {measured}")
        arms = {arm.name: _arm(task, arm, seeds, folder, tell, _kept(arm, kept or {})) for arm in task.arms}
    found = {
        "title": task.title, "best": task.best, "steps": task.steps, "teacher": task.more["teacher"],
        "twin": task.more.get("twin"),
        "operations": task.more["operations"], "views": task.views, "arms": arms,
        "differences": _differences(arms, task.best),
    }  # fmt: skip
    for arm in arms.values():
        for scores in arm["scores"]:
            scores.pop("right", None)
    return found


def _kept(arm: Arm, kept: Mapping[str, Any]) -> dict[str, Any] | None:
    anew = bool(arm.asks) and arm.views != "live"
    return None if anew else kept.get(arm.name)


def _arm(
    task: Task,
    arm: Arm,
    seeds: Sequence[int],
    folder: str,
    tell: Callable[[str], None],
    kept: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Choose on validation, unless that was done before; then measure every seed on test."""
    better = min if task.best == "error" else max
    tried: list[Any] = list(kept["tried"]) if kept else []
    tries: Sequence[Choice] = () if kept else arm.tries
    for choice in tries:
        score = task.score(task, student(task, arm, choice, SEARCH, folder)[0], "validation")[task.best]
        tried.append({"choice": dict(choice), "validation": score if math.isfinite(score) else None})
    able = [one for one in tried if one["validation"] is not None]
    chosen = better(able, key=lambda one: one["validation"])["choice"]
    trained = [student(task, arm, chosen, seed, folder) for seed in seeds]
    scores = [task.score(task, module, "test") for module, _ in trained]
    shown = " ".join(f"{one[task.best]:.4g}" for one in scores)
    tell(f"  {task.name}, {arm.name}: {_choice(chosen)}; {trained[0][1]['steps']} steps; {shown}")
    return {"choice": chosen, "tried": tried, "cost": trained[0][1], "scores": scores}


def _differences(arms: dict[str, Any], best: str) -> dict[str, Any]:
    """Return each pair's paired differences: of errors the logarithm of the ratio."""
    found = {}
    for one, other in COMPARED[best]:
        if one not in arms or other not in arms:
            continue
        ours, theirs = arms[one]["scores"], arms[other]["scores"]
        if best == "error":
            logs = [math.log(a["error"] / b["error"]) for a, b in zip(ours, theirs, strict=True)]
            found[f"{one} / {other}"] = {"error": over_seeds(logs).plain()}
            continue
        right = [np.stack([np.asarray(scores["right"]) for scores in side]) for side in (ours, theirs)]
        pair: dict[str, Any] = {"accuracy": paired(*right).plain()}
        for measure in ("agreement", "cosine", "maps"):
            if measure in ours[0]:
                values = [a[measure] - b[measure] for a, b in zip(ours, theirs, strict=True)]
                pair[measure] = over_seeds(values).plain()
        found[f"{one} - {other}"] = pair
    return found


def again(record: Path, out: Path, tell: Callable[[str], None]) -> None:
    """Measure the images of a record anew and write the part as ``gradient.py --take`` reads it."""
    part = json.loads(record.read_text(encoding="utf-8"))["parts"]["derivatives"]
    seeds, before, began = part["seeds"], part["result"]["cases"], time.monotonic()
    cases = {
        name: before[name] if name in FUNCTIONS else case(name, seeds, False, tell, before[name]["arms"])
        for name in CASES
    }
    minutes = f"{(time.monotonic() - began) / 60:.0f} minutes"
    note = (
        f"Images on another day, {minutes}, with the choices of {record.parent.name} but for arms that read recorded "
    )
    note += (
        f"derivatives, which chose anew; functions stand as measured then ({part['seconds'] / 60:.0f} minutes in all). "
    )
    note += part.get("note", "")
    found = {**part, "machine": facts(), "note": note.strip(), "result": {**part["result"], "cases": cases}}
    out.write_text(json.dumps({"derivatives": found}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# --- what is said of it ------------------------------------------------------------------------------


def marks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the marks: errors on two functions relative to controls, cosines of gradients on held-out images."""
    found = []
    for name in FUNCTIONS:
        differences = result["cases"][name]["differences"]
        for pair, target, told in RATIOS:
            ratio = differences[pair]["error"]
            found.append(
                {
                    "name": f"{name}: {told}", "target": f"<= {target:g} x", "measured": f"{_ratio(ratio)} x",
                    "met": math.exp(ratio["mean"]) <= target,
                }
            )  # fmt: skip
    for name in ("mlp", "cnn"):
        cosines = over_seeds([scores["cosine"] for scores in result["cases"][name]["arms"]["gradient"]["scores"]])
        found.append(
            {
                "name": f"{name}: cosine of the input gradients on held-out images, 5 images a class",
                "target": f">= {ALIKE:g}", "measured": _spread(cosines.plain(), 1, 3), "met": cosines.mean >= ALIKE,
            }
        )  # fmt: skip
    return found


def page(result: dict[str, Any]) -> list[str]:
    """Return the tables and what they say, as lines of markdown."""
    lines = [
        "## Matching derivatives",
        "",
        f"{len(result['seeds'])} paired seeds, equal operations on the student's side. Brackets: 95 %, Student's t "
        "over seeds; of differences in accuracy the wider of that and a bootstrap over test images. Choices were made "
        "on validation with another seed; rates at an end of those tried need not be the best there are.",
        "",
    ]
    for name, one in result["cases"].items():
        lines += [f"### {one['title']}", "", *(_errors(one) if name in FUNCTIONS else _accuracies(one)), ""]
    return [*lines, *_sentences(result["cases"])]


def _errors(one: dict[str, Any]) -> list[str]:
    rows = [["arm", "chosen", "steps", "teacher's operations", "test error, geometric mean", "each seed x 1,000"]]
    for name, arm in one["arms"].items():
        errors = [scores["error"] for scores in arm["scores"]]
        logs = over_seeds([math.log(error) for error in errors]).plain()
        rows.append(
            [
                name, _choice(arm["choice"]), str(arm["cost"]["steps"]), _teachers(arm),
                _ratio(logs), " ".join(f"{1000 * error:.3g}" for error in errors),
            ]
        )  # fmt: skip
    ratios = [["ratio of errors, paired", "x [95 %]"]]
    ratios += [[pair, _ratio(found["error"])] for pair, found in one["differences"].items()]
    head = (
        f"The error is the mean square of the difference to the teacher; the teacher's own, to the truth, is "
        f"{one['teacher']['error']:.5f}. A point has {one['views']} recorded numbers: a value and its gradient, or the "
        f"values of the point and of {one['views'] - 1} noised views. Two views cost the teacher what value and "
        "gradient do."
    )
    return [head, "", *_table(rows), "", *_table(ratios)]


def _accuracies(one: dict[str, Any]) -> list[str]:
    measures = [key for key in ("accuracy", "agreement", "cosine", "maps") if key in one["arms"]["kd"]["scores"][0]]
    names = {
        "accuracy": "accuracy, %",
        "agreement": "agreement, %",
        "cosine": "gradients' cosine",
        "maps": "maps' cosine",
    }
    rows = [["arm", "chosen", "steps", "teacher's operations", *(names[key] for key in measures)]]
    for name, arm in one["arms"].items():
        rows.append(
            [name, _choice(arm["choice"]), str(arm["cost"]["steps"]), _teachers(arm) if name != "alone" else ""]
        )
        for key in measures:
            found = over_seeds([scores[key] for scores in arm["scores"]]).plain()
            rows[-1].append(_spread(found, *_scale(key)))
    pairs = [["difference, paired", *(names[key] for key in measures)]]
    for pair, found in one["differences"].items():
        pairs.append([pair, *(_spread(found[key], *_scale(key), sign="+") for key in measures)])
    head = (
        f"The teacher is right on {100 * one['teacher']['accuracy']:.1f} % of the test images. Without `all images` "
        "a student sees 50 images and no other."
    )
    twin = ", ".join(f"{names[key]} {_scale(key)[0] * one['twin'][key]:.{_scale(key)[1]}f}" for key in measures)
    twin = twin.replace(", %", " in %")
    head += f" What can be expected of likeness: a second teacher, of another seed, has {twin}."
    return [head, "", *_table(rows), "", *_table(pairs)]


def _sentences(cases: dict[str, Any]) -> list[str]:
    """Say what the figures say, each claim with the word its interval allows."""
    lines = ["What follows (on the test split, at equal operations of the student):", ""]
    for pair, target, told in RATIOS:
        each = [f"{name} {_ratio(cases[name]['differences'][pair]['error'])} x" for name in FUNCTIONS]
        lines.append(f"* Errors of {told}: {', '.join(each)} (asked: at most {target:g} x).")
    for name, pair, told in (
        ("mlp", "gradient - kd", "gradients of 50 images, recorded, beside answers"),
        ("mlp", "gradient - kd, noised live", "the same against KD on noised inputs with the teacher at work"),
        ("mlp", "gradient, noised live - kd, noised live", "both on noised inputs with the teacher at work"),
        ("mlp", "gradient, all images - kd, all images", "gradients where all 8,000 images are given, unlabelled"),
        ("cnn", "gradient - kd", "gradients of 50 images, recorded, in a CNN"),
        ("cnn", "gradient, noised live - kd, noised live", "both on noised inputs, in a CNN"),
        ("cnn", "explanation - kd", "Grad-CAM maps of 50 images, recorded, in a CNN"),
    ):
        if pair not in cases[name]["differences"]:
            continue
        found = cases[name]["differences"][pair]
        said = [
            f"{words} {_spread(found[key], *_scale(key), sign='+')} ({_verdict(found[key])})"
            for key, words in (("accuracy", "accuracy"), ("agreement", "agreement"), ("cosine", "gradients' cosine"))
        ]
        lines.append(f"* {told[0].upper()}{told[1:]}: {', '.join(said)}.")
    return [*lines, *_reasons(cases)]


def _reasons(cases: dict[str, Any]) -> list[str]:
    """Say why marks were missed, where they were."""
    lines = []
    pair, target, _ = RATIOS[2]
    if any(math.exp(cases[name]["differences"][pair]["error"]["mean"]) > target for name in FUNCTIONS):
        views = " and ".join(f"{cases[name]['views'] / 2:g}" for name in FUNCTIONS)
        even = " and ".join(f"{_ratio(cases[name]['differences'][RATIOS[1][0]]['error'])} x" for name in FUNCTIONS)
        lines.append(
            "* Number for number, answers to noised inputs tell as much as gradients or more: noise that is chosen on "
            "validation spreads the points over the whole cube, where gradients say all about 64 places. They cost the "
            f"teacher {views} times as much; where both cost the same, gradients have {even} of the error."
        )
    cnn = cases["cnn"]
    found = float(np.mean([scores["cosine"] for scores in cnn["arms"]["gradient"]["scores"]]))
    if found < ALIKE:
        lines.append(
            f"* A CNN's gradients by pixels are its own: two teachers that differ in their seed only have a cosine of "
            f"{cnn['twin']['cosine']:.2f}. A student of 50 images has {found:.2f} with its teacher; {ALIKE:g} is more "
            "than either shows."
        )
    return lines


def _verdict(found: dict[str, Any]) -> str:
    if (found["low"] or 0) > 0:
        return "pays"
    return "costs" if found["high"] is not None and found["high"] < 0 else "not told apart"


def _teachers(arm: dict[str, Any]) -> str:
    """The live teacher's operations a step, relative to the student's."""
    return f"{arm['cost']['teacher'] / arm['cost']['student']:.1f} x" if arm["cost"]["teacher"] else "recorded"


def _choice(choice: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in choice.items())


def _scale(measure: str) -> tuple[float, int]:
    return (100, 1) if measure in ("accuracy", "agreement") else (1, 3)


def _spread(found: dict[str, Any], scale: float, digits: int, sign: str = "") -> str:
    mean = f"{scale * found['mean']:{sign}.{digits}f}"
    if found["low"] is None:
        return mean
    return f"{mean} [{scale * found['low']:{sign}.{digits}f}, {scale * found['high']:{sign}.{digits}f}]"


def _ratio(logs: dict[str, Any]) -> str:
    """Return the exponential of a mean of logarithms, with its interval: three digits, or two after the point."""
    shown = [_short(math.exp(logs[key])) for key in ("mean", "low", "high") if logs[key] is not None]
    return shown[0] if len(shown) == 1 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def main() -> None:
    """Measure the images of a record anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    again(options.record, options.out, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
