"""Which objectives hold up: many arms, five seeds, two small real tasks, the same start and as many steps for each.

    python benchmarks/losses.py                    # both tasks, about half an hour on two cores
    python benchmarks/losses.py --quick            # a look: two arms, two seeds, few steps
    python benchmarks/losses.py --record           # and keep it in benchmarks/records/<date>-losses/

Every arm gets one small search on validation, with the first seed: three learning rates (x0.3, x1, x3) times two
weights of its own term (x1, x0.1); arms without such a term get the rates. Then five seeds, each from the same start,
in the same order. What is reported: the share of the gap closed with its interval, agreement, calibration, cost a
step.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
BASE = [{"use": "labels", "weight": 0.1}]
KD = {"use": "kd", "temperature": 2, "weight": 0.9}

# What each arm adds. Weights are the authors' (or mdistiller's) where they have one; feature terms stand beside kd.
ANSWERS: dict[str, dict[str, Any]] = {
    "kd": KD,
    "kd T=4": {"use": "kd", "temperature": 4, "weight": 0.9},
    "mse_logits": {"use": "mse_logits", "weight": 0.1},
    "dkd": {"use": "dkd", "weight": {"from": 0.05, "to": 1, "until": 0.1}},
    "dist": {"use": "dist", "weight": 2},
    "lskd": {"use": "lskd", "weight": 9},
    "reverse_kl": {"use": "reverse_kl", "weight": 0.9},
    "jsd": {"use": "jsd", "weight": 0.9},
}
FEATURES: dict[str, dict[str, Any]] = {
    "kd+hint": {"use": "hint", "weight": 100},
    "kd+attention_transfer": {"use": "attention_transfer", "student": "block3", "teacher": "layer3", "weight": 1000},
    "kd+nst": {"use": "nst", "student": "block3", "teacher": "layer3", "weight": 50},
    "kd+sp": {"use": "sp", "weight": 3000},
    "kd+rkd": {"use": "rkd", "weight": 1},
    "kd+pkt": {"use": "pkt", "weight": 30000},
    "kd+crd": {"use": "crd", "weight": 0.8},
    "kd+bank": {"use": "bank", "weight": 1},
}
TEACHER = {
    "model": "resnet",
    "depth": 8,
    "width": 32,
    "stem": 2,
    "train": {"epochs": 12, "lr": 3.0e-3, "weight_decay": 5.0e-2},
}
TASKS: dict[str, dict[str, Any]] = {
    "few labels": {
        "data": {"use": "fashion-mnist-sample", "labels": 1000},
        "student": {"model": "cnn", "width": 16},
        "train": {"steps": 300, "batch": {"labelled": 64, "transfer": 64}, "lr": 3.0e-3},
    },
    "all labels": {
        "data": {"use": "fashion-mnist-sample"},
        "student": {"model": "cnn", "width": 8},
        "train": {"steps": 300, "batch": 128, "lr": 3.0e-3},
    },
}


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    """Return every arm as a recipe writes it, ``name@0.1`` being the same with a tenth of its own weight."""
    answers, features = dict(ANSWERS), dict(FEATURES)
    if quick:
        answers, features = {"kd": ANSWERS["kd"]}, {"kd+bank": FEATURES["kd+bank"]}
    found: dict[str, dict[str, Any]] = {}
    for factor in (1.0, 0.1):
        mark = "" if factor == 1.0 else f"@{factor:g}"
        for name, term in answers.items():
            found[name + mark] = {"objectives": [*BASE, scaled(term, factor)]}
        for name, term in features.items():
            found[name + mark] = {"objectives": [*BASE, KD, scaled(term, factor)]}
    found["smoothing"] = {"objectives": [{"use": "labels", "smoothing": 0.1}]}
    return found


def scaled(term: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return a term with its weight times ``factor``."""
    weight = term["weight"]
    if isinstance(weight, dict):
        return {**term, "weight": {**weight, "from": weight["from"] * factor, "to": weight["to"] * factor}}
    return {**term, "weight": weight * factor}


def recipe(task: str, chosen: dict[str, dict[str, Any]], seeds: list[int], quick: bool) -> dict[str, Any]:
    """Return the recipe of a task with these arms and seeds."""
    block = TASKS[task]
    train = dict(block["train"], **({"steps": 30} if quick else {}))
    longer = {"objectives": [{"use": "labels"}], "train": {"steps": 2 * train["steps"]}}
    safe = {name.replace(" ", "_").replace("@", "-at-"): arm for name, arm in chosen.items()}
    return {
        "name": task.replace(" ", "-"),
        "data": block["data"],
        "teacher": TEACHER,
        "student": block["student"],
        "objectives": [*BASE, KD],
        "record": {"views": 2},
        "train": train,
        "arms": {**safe, "longer": longer},
        "seeds": seeds,
        "export": {"onnx": False},
    }


def run(described: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a recipe with two processes and return its metrics."""
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.pipeline.run import perform, processes_for
    from stillroom.pipeline.tasks import tasks_of
    from stillroom.progress import ticking
    from stillroom.recipe import read_recipe

    read = read_recipe(described)
    experiment = experiment_of(read)
    tasks = tasks_of(experiment)
    with ticking(len(tasks) + 2, {task.name: task.title for task in tasks}, quiet=False) as told:
        return perform(experiment, folder, processes=processes_for("auto", len(tasks)), told=told).metrics


def choose(folder: Path, names: list[str]) -> dict[str, str]:
    """Return, for each arm, which of its two weights was better on validation with the first seed (x1 of equals)."""
    best: dict[str, tuple[float, str]] = {}
    for name in sorted(names, key=lambda one: "-at-" in one):
        score = json.loads((folder / "arms" / f"{name}-0" / "scores.json").read_text())["validation"]
        plain = name.split("-at-")[0]
        if plain not in best or score > best[plain][0]:
            best[plain] = (score, name)
    return {plain: name for plain, (_, name) in best.items()}


def cost_per_step(described: dict[str, Any]) -> dict[str, float]:
    """Return each arm's median time of a step against the labels alone, measured in turns on one thread."""
    from stillroom.learner import Learner
    from stillroom.objectives import Objective
    from stillroom.pipeline.plan import ArmPlan
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.recipe import read_recipe
    from stillroom.record import record
    from stillroom.teachers import Live
    from stillroom.train import train

    torch.set_num_threads(1)
    experiment = experiment_of(read_recipe(described))
    plan = experiment.teachers[""]
    assert plan.make is not None
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        module = plan.make()
        taps = experiment.taps("")
        store = record(
            Live(module, taps, encode=plan.encode), experiment.data, folder, views=experiment.views, taps=taps
        )

        def steps(arm: ArmPlan, objectives: list[Objective]) -> Any:
            data = arm.data(experiment.data)
            learner = Learner(arm.make_student(0), objectives, encode=arm.encode)
            settings = arm.settings(data).model_copy(update={"gradient_norms_every": 0})
            return train(
                learner,
                data,
                store if arm.reads_teacher else None,
                settings,
                rows=arm.rows(data),
                views=experiment.views,
            )

        running = {name: steps(arm, arm.objectives()) for name, arm in experiment.arms.items() if name != "longer"}
        turns = min(33, described["train"]["steps"])
        for turn in range(turns):
            for name, one in running.items():
                before = time.perf_counter()
                next(one)
                if turn >= 3:
                    found.setdefault(name, []).append(time.perf_counter() - before)
    floor = found["alone"]
    return {name: statistics.median(a / b for a, b in zip(times, floor, strict=True)) for name, times in found.items()}


def table(metrics: dict[str, Any], costs: dict[str, float]) -> list[str]:
    """Return the task's table as markdown, best mean first; arms whose intervals overlap are not ranked by it."""
    rows = []
    for name, model in metrics["models"].items():
        if name in ("teacher", "distilled"):
            continue
        gap = (metrics.get("gaps") or {}).get(name)
        share = f"{100 * gap['mean']:.0f} % [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]" if gap else "–"
        cost = f"{costs[name]:.2f}" if name in costs else "–"
        half = (max(model["score"]["per_seed"]) - min(model["score"]["per_seed"])) / 2
        rows.append(
            (
                model["score"]["mean"],
                [
                    name.replace("_at_", "@").replace("-at-", "@"),
                    f"{100 * model['score']['mean']:.2f} ± {100 * half:.2f}",
                    share,
                    f"{100 * model['agreement']['mean']:.1f} %",
                    f"{model['ece']['mean']:.3f}",
                    cost,
                ],
            )
        )
    head = ["arm", "accuracy % (± half range)", "gap closed, 95 %", "agreement", "ECE", "step x alone"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    lines += [" | ".join(cells) for _, cells in sorted(rows, key=lambda row: -row[0])]
    return [f"| {line} |" for line in lines]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the share of the gap closed by each arm of each task, with its interval."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "stillroom"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(11, 6), squeeze=False)
    for axis, (task, result) in zip(axes[0], results.items(), strict=True):
        gaps = {name: gap for name, gap in (result["metrics"].get("gaps") or {}).items() if gap}
        order = sorted(gaps, key=lambda name: gaps[name]["mean"])
        for place, name in enumerate(order):
            gap = gaps[name]
            axis.plot([gap["low"], gap["high"]], [place, place], color="0.6", linewidth=2)
            axis.plot(gap["mean"], place, "o", color="tab:blue")
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_yticks(range(len(order)), [name.replace("-at-", "@") for name in order])
        axis.set_xlabel("share of the gap closed, 95 % interval")
        axis.set_title(task)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Run both tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two arms, two seeds, few steps")
    parser.add_argument("--record", action="store_true", help="keep the result under benchmarks/records/")
    parser.add_argument("--task", choices=list(TASKS), action="append", help="one task only")
    parser.add_argument("--out", type=Path, default=Path("runs/losses"), help="where runs are kept")
    options = parser.parse_args()
    seeds = [0, 1] if options.quick else [0, 1, 2, 3, 4]
    results: dict[str, Any] = {}
    for task in options.task or TASKS:
        everything = arms(options.quick)
        began = time.time()
        search = recipe(task, everything, seeds[:1], options.quick)
        place = options.out / task.replace(" ", "-")
        run(search, place / "search")
        chosen = choose(place / "search", [name for name in search["arms"] if name != "longer"])
        kept = {name: arm for name, arm in search["arms"].items() if name in chosen.values()}
        final = recipe(task, kept, seeds, options.quick)
        metrics = run(final, place / "final")
        results[task] = {"metrics": metrics, "costs": cost_per_step(final), "minutes": (time.time() - began) / 60}
        print(f"\n## {task}\n\n" + "\n".join(table(metrics, results[task]["costs"])), flush=True)
    if options.record:
        keep(results)


def keep(results: dict[str, Any]) -> None:
    """Write tables, numbers and the figure into a folder of today's date."""
    from keeping import RECORDS, facts

    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    folder = RECORDS / f"{date}-losses"
    folder.mkdir(parents=True, exist_ok=True)
    machine = facts()
    (folder / "result.json").write_text(
        json.dumps({"date": date, "machine": machine, "tasks": results}, indent=1) + "\n", encoding="utf-8"
    )
    draw(results, folder / "figure.svg")
    lines = [
        f"# Which objectives hold up, {date}",
        "",
        "`python benchmarks/losses.py --record`. " + " ".join(__doc__.split("\n\n")[2].split()),
    ]
    for task, result in results.items():
        metrics = result["metrics"]
        teacher = 100 * metrics["models"]["teacher"]["score"]["mean"]
        lines += [
            "",
            f"## {task.capitalize()}",
            "",
            f"Teacher {teacher:.2f} %, {result['minutes']:.0f} minutes on two processes.",
            "",
        ]
        lines += table(metrics, result["costs"])
    lines += [
        "",
        "`name@0.1`: a tenth of the authors' weight was chosen on validation. `longer`: labels alone for twice the "
        "steps. Where "
        "two intervals overlap, neither arm is the better one.",
        "",
        "![Share of the gap closed by each arm](figure.svg)",
        "",
        "Machine: " + "; ".join(f"{key} {value}" for key, value in machine.items()) + ".",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
