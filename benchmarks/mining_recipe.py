"""A recipe that was mined from a run against the one that a person wrote, over the same seeds, on the same teacher.

    python benchmarks/mining_recipe.py recipes/gradient.yaml kd OUT [--set train.steps=300 ...]

Both are run as they are, apart from the overrides; the teacher and what it showed come from the cache the second time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from stillroom.mining import Panel
from stillroom.pipeline.mining import mine, recipe_of_run, subjects_of_run
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.run import perform
from stillroom.recipe import Recipe, read_recipe
from stillroom.statistics import over_seeds

SEEDS = (0, 1, 2)
PANELS = ("answers", "similarity", "layers", "students")


def reduced(recipe: Recipe, arm: str) -> Recipe:
    """Return the recipe with one arm, three seeds and no graphs."""
    return read_recipe({**recipe.arm(arm).resolved(), "seeds": list(SEEDS), "export": {"onnx": False}})


def done(recipe: Recipe, folder: Path) -> dict[str, list[float]]:
    """Run a recipe; return accuracy and agreement of its main arm, one a seed."""
    perform(experiment_of(recipe), folder)
    told = json.loads((folder / "metrics.json").read_text())["models"]["distilled"]
    return {name: told[name]["per_seed"] for name in ("accuracy", "agreement")}


def mined(folder: Path) -> Panel:
    """Mine a run's recipe."""
    subject, students = subjects_of_run(folder)
    found = mine(subject, folder / "mining", students=students, only=PANELS, recipe=recipe_of_run(folder))
    return found.panels["recipe"]


def main() -> None:
    """Print both, and the difference paired by seed."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("recipe")
    asked.add_argument("arm")
    asked.add_argument("out", type=Path)
    asked.add_argument("--set", action="append", default=[])
    given = asked.parse_args()
    torch.set_num_threads(1)
    first = done(reduced(read_recipe(given.recipe, set=given.set), given.arm), given.out / "hand")
    panel = mined(given.out / "hand")
    print(json.dumps(panel.numbers, indent=1))
    second = done(read_recipe(panel.files["recipe.yaml"].decode()), given.out / "mined")
    for name, hand in first.items():
        gap = over_seeds((100 * (np.array(second[name]) - np.array(hand))).tolist()).plain()
        means = [100 * float(np.mean(one)) for one in (hand, second[name])]
        print(f"{name}: hand-written {means[0]:.2f} %, mined {means[1]:.2f} %, mined - hand-written {json.dumps(gap)}")


if __name__ == "__main__":
    main()
