"""A recipe that was mined from a run against the one that a person wrote, over the same seeds; and each choice alone.

    python benchmarks/mining_recipe.py recipes/gradient.yaml kd OUT [--seeds 10] [--wrong 0.1] [--set train.steps=300]

All are run as they are, apart from the overrides and without the control `alone`; the teacher and what it showed come
from the cache, unless examples are left out: then it is trained anew, and agreement is with that other teacher.
With --wrong, so many of the training labels of images are exchanged for another class at random before anything begins.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.mining import Panel, Subject
from stillroom.pipeline.mined_choices import Path as Place
from stillroom.pipeline.mined_choices import choose
from stillroom.pipeline.mined_recipe import changed, mined_recipe
from stillroom.pipeline.mining import mine, recipe_of_run, subjects_of_run
from stillroom.pipeline.recipes import experiment_of, open_data
from stillroom.pipeline.run import perform
from stillroom.recipe import Recipe, read_recipe
from stillroom.statistics import over_seeds

PANELS = ("answers", "similarity", "examples", "layers", "students")
MEASURES = ("accuracy", "agreement", "ece")
FEW = 3  # seeds told beside all of them
Scores = Mapping[str, list[float]]


def reduced(recipe: Recipe, arm: str, seeds: int) -> Recipe:
    """Return the recipe with one arm, other seeds, no control and no graphs."""
    plain = {**recipe.arm(arm).resolved(), "seeds": list(range(seeds)), "export": {"onnx": False}, "control": False}
    return read_recipe(plain)


def spoilt(recipe: Recipe, wrong: float, file: Path) -> Recipe:
    """Return the recipe on the same images, a share of the training labels exchanged, written to ``file``."""
    data = open_data(recipe.data)
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array(list(data.classes or ()))}
    for split, rows in data.splits.items():
        batch = data.batch(torch.stack([rows, torch.zeros_like(rows)], 1))
        arrays |= {f"x_{split}": batch["inputs"].numpy(), f"y_{split}": batch["labels"].numpy()}
    labels, random = arrays["y_train"], np.random.default_rng(0)
    bad = random.choice(len(labels), round(wrong * len(labels)), replace=False)
    labels[bad] = (labels[bad] + random.integers(1, len(arrays["classes"]), len(bad))) % len(arrays["classes"])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    plain = recipe.resolved()
    kept = {key: plain["data"][key] for key in ("labels", "unlabelled", "pad", "flip", "noise")}
    return read_recipe({**plain, "data": {"use": "npz", "path": str(file), **kept}})


def done(recipe: Recipe, folder: Path) -> dict[str, list[float]]:
    """Run a recipe; return what is measured of its main arm on test examples, one number a seed."""
    perform(experiment_of(recipe), folder)
    models = json.loads((folder / "metrics.json").read_text())["models"]
    found = {name: models["distilled"][name]["per_seed"] for name in MEASURES}
    return found | {"teacher": models["teacher"]["accuracy"]["per_seed"]}


def mined(folder: Path) -> tuple[Panel, dict[str, dict[Place, Any]]]:
    """Mine a run's recipe; return it, and its choices by their kind."""
    recipe = recipe_of_run(folder)
    assert recipe is not None
    subject, students = subjects_of_run(folder)
    panels = mine(subject, folder / "mining", students=students, only=PANELS).panels
    pupil: Subject = next(iter(students.values()))[0]
    kinds: dict[str, dict[Place, Any]] = {}
    for place, value in choose(recipe, panels, subject, pupil).values.items():
        if place != ("name",) and value != at(recipe.resolved(), place):
            kinds.setdefault(str(place[-1]), {})[place] = value
    return mined_recipe(recipe, panels, subject, pupil), kinds


def at(value: Any, place: Place) -> Any:
    """Return what stands at a place of a recipe, or None."""
    for key in place:
        if isinstance(value, dict) and key not in value:
            return None
        value = value[key]
    return value


def told(title: str, hand: Scores, other: Scores) -> None:
    """Print the difference in each measure, paired by seed, over the first few seeds and over all."""
    print(f"\n{title}: teacher {100 * np.mean(other['teacher']):.2f} %")
    for name in MEASURES:
        gaps = [100 * (new - old) for new, old in zip(other[name], hand[name], strict=True)]
        means = [100 * float(np.mean(one[name])) for one in (hand, other)]
        parts = []
        for count in sorted({FEW, len(gaps)}):
            gap = over_seeds(gaps[:count])
            parts.append(f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f}, {count} seeds)")
        print(f"  {name:<9} {means[0]:6.2f} -> {means[1]:6.2f}: {'; '.join(parts)}", flush=True)


def main() -> None:
    """Print the choices, and what all of them and each kind alone are worth."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("recipe")
    asked.add_argument("arm")
    asked.add_argument("out", type=Path)
    asked.add_argument("--seeds", type=int, default=FEW)
    asked.add_argument("--wrong", type=float, default=0.0)
    asked.add_argument("--set", action="append", default=[])
    given = asked.parse_args()
    torch.set_num_threads(1)
    recipe = reduced(read_recipe(given.recipe, set=given.set), given.arm, given.seeds)
    if given.wrong:
        recipe = spoilt(recipe, given.wrong, given.out / "wrong.npz")
    hand = done(recipe, given.out / "hand")
    panel, kinds = mined(given.out / "hand")
    print(json.dumps(panel.numbers, indent=1))
    told("hand-written", hand, hand)
    told("mined, all choices", hand, done(read_recipe(panel.files["recipe.yaml"].decode()), given.out / "mined"))
    for kind, choices in kinds.items():
        plain = changed(recipe.resolved(), {**choices, ("name",): f"{recipe.name}-{kind}"})
        told(f"{kind} alone", hand, done(read_recipe(plain), given.out / kind))


if __name__ == "__main__":
    main()
