"""A transformer into a BiLSTM, in English and Chinese: is the student better for it, and than what costs less?

    python benchmarks/text.py                      # both languages, about half an hour on two cores
    python benchmarks/text.py --quick              # a look: one seed, few steps
    python benchmarks/text.py --record             # and keep it in benchmarks/records/<date>-text/

The two shipped recipes, sentiment-en and sentiment-zh, with five seeds and more arms. Every arm and the control get as
many steps and as many learning rates (x0.3, x1, x3, by validation with the first seed); their best moment is chosen on
validation. Beside them stand what costs less: TF-IDF and logistic regression, static embeddings of the teacher and
logistic regression, each with the labels that the student sees and with all labels; and the student's own past as its
teacher (PS-KD, and the moving average of its weights). Latency: both graphs in turns, one text at a time, one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
BEST = "best linear"
MORE: dict[str, dict[str, Any]] = {
    "kd+bank": {"add": [{"use": "bank", "weight": 1}]},
    "kd+crd": {"add": [{"use": "crd", "weight": 0.8}]},
}


# --- the arms ---------------------------------------------------------------------------------------------


def recipe_of(language: str, seeds: list[int], quick: bool) -> Any:
    """Return the shipped recipe of a language with these seeds and, in English, the arms that remember others."""
    from stillroom.recipe import read_recipe
    from stillroom.recipe.text import read_file, read_tree

    path = ROOT / "src" / "stillroom" / "recipes" / f"sentiment-{language}.yaml"
    plain = read_tree(read_file(path)).plain()
    plain["seeds"] = seeds
    plain["name"] = f"sentiment-{language}"
    if language == "en" and not quick:
        plain["arms"] |= MORE
    return read_recipe(plain, tiny=quick)


def run(recipe: Any, folder: Path) -> Any:
    """Run a recipe with as many processes as cores and return its experiment and metrics."""
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.pipeline.run import perform, processes_for
    from stillroom.pipeline.tasks import tasks_of
    from stillroom.progress import ticking

    experiment = experiment_of(recipe)
    tasks = tasks_of(experiment)
    with ticking(len(tasks) + 2, {task.name: task.title for task in tasks}, quiet=False) as told:
        outcome = perform(experiment, folder, processes=processes_for("auto", len(tasks)), told=told)
    return experiment, outcome.metrics


def own_past(experiment: Any, kind: str, seed: int, rate: float) -> tuple[float, float]:
    """Train the student from its own past alone and return its accuracy on validation and test."""
    from stillroom.evaluate import evaluate
    from stillroom.learner import Learner
    from stillroom.objectives import match
    from stillroom.settings import Ramp
    from stillroom.teachers import MovingAverage, Previous
    from stillroom.train import Rows, fit

    arm = experiment.main
    data = arm.data(experiment.data)
    student = arm.make_student(seed)
    labelled = Rows(data.labelled)
    rows = arm.training.rows
    settings = arm.training.model_copy(update={"batch": rows, "lr": rate})
    if kind == "PS-KD":
        rise = match("kd", weight=Ramp(**{"from": 0, "to": 0.8, "until": 1.0}), temperature=1)
        fall = match("labels", weight=Ramp(**{"from": 1, "to": 0.2, "until": 1.0}))
        terms, every = [fall, rise], max(1, len(data.labelled) // rows)
        teacher: Any = Previous(student, every=every, encode=arm.encode)
    else:
        terms = [match("labels"), match("kd", weight=Ramp(**{"from": 0, "to": 1, "until": 0.2}), temperature=1)]
        teacher = MovingAverage(student, decay=0.99, encode=arm.encode)
    fit(Learner(student, terms, encode=arm.encode), data, teacher, settings, rows=labelled, seed=seed)
    scores = [evaluate(student, data, split=split, encode=arm.encode)["accuracy"] for split in ("validation", "test")]
    return scores[0], scores[1]


def past_arms(experiment: Any, seeds: list[int]) -> dict[str, Any]:
    """Return what the student's own past teaches it: test accuracy a seed, the rate chosen on validation."""
    found = {}
    for kind in ("PS-KD", "moving average"):
        base = experiment.main.training.lr
        tried = {factor: own_past(experiment, kind, seeds[0], base * factor) for factor in experiment.trials}
        best = max(tried, key=lambda factor: tried[factor][0])
        more = [own_past(experiment, kind, seed, base * best)[1] for seed in seeds[1:]]
        found[kind] = {"per_seed": [tried[best][1], *more], "factor": best}
    return found


# --- what costs less -----------------------------------------------------------------------------------------


def linear(vectors: dict[str, Any], labels: dict[str, np.ndarray]) -> float:
    """Return the test accuracy of a logistic regression whose strength is chosen on validation."""
    from sklearn.linear_model import LogisticRegression

    best = (-1.0, 0.0)
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000).fit(vectors["train"], labels["train"])
        score = model.score(vectors["validation"], labels["validation"])
        best = max(best, (score, -strength))
    model = LogisticRegression(C=-best[1], max_iter=2000).fit(vectors["train"], labels["train"])
    return float(model.score(vectors["test"], labels["test"]))


def baselines(experiment: Any, language: str) -> dict[str, dict[str, float]]:
    """Return the test accuracy of what costs less, from the labels the student sees and from all of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    data, found = experiment.data, {}
    seen = experiment.main.data(data)
    for title, train in (("few labels", seen.labelled), ("all labels", data.splits["train"])):
        rows = {"train": train, "validation": data.splits["validation"], "test": data.splits["test"]}
        texts = {name: [data.show(int(row)) for row in part] for name, part in rows.items()}
        labels = {name: data.labels[part].numpy() for name, part in rows.items()}
        if language == "zh":
            words = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        else:
            words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        made = {"train": words.fit_transform(texts["train"])}
        made |= {name: words.transform(texts[name]) for name in ("validation", "test")}
        found[title] = {"TF-IDF + logistic regression": linear(made, labels)}
        if language == "en":
            table = static(experiment, texts["train"])
            vectors = {name: table.encode(part) for name, part in texts.items()}
            found[title]["static embeddings + logistic regression"] = linear(vectors, labels)
    return found


def static(experiment: Any, texts: list[str]) -> Any:
    """Make static embeddings of the words of ``texts`` from the teacher as it came, before it was trained further."""
    from collections import Counter

    from stillroom.embeddings import static_embeddings
    from stillroom.models.vocabulary import build, counted

    plan = experiment.teachers[""]
    words, unit = build(texts, size=8000, least=1)
    counts = Counter(dict(counted(texts, unit)))
    return static_embeddings(plan.make(), plan.encode, words, unit=unit, counts=counts)


# --- what it costs ------------------------------------------------------------------------------------------


def latencies(experiment: Any, folder: Path) -> dict[str, Any]:
    """Return milliseconds a text of both graphs, measured in turns, and how many times faster the student's are."""
    from stillroom.evaluate import plain_ids
    from stillroom.export import measure

    rows = experiment.data.splits["test"][:64]
    inputs = experiment.data.batch(plain_ids(rows))["inputs"]
    graphs = {
        "teacher": (folder / "export/teacher/model.onnx", experiment.teachers[""].encode),
        "student": (folder / "export/student/model.onnx", experiment.main.encode),
        "student int8": (folder / "export/student/model.int8.onnx", experiment.main.encode),
    }
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(9):
        for name, (path, encode) in graphs.items():
            times[name].append(measure(path, inputs, encode=encode, calls=64)["latency_ms"])
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["teacher"], times[name], strict=True))
        for name in ("student", "student int8")
    }
    return {"ms": {name: statistics.median(part) for name, part in times.items()}, "ratio": ratios, "pairs": times}


def epoch_ratio(experiment: Any, folder: Path) -> dict[str, Any]:
    """Return how many times longer a step is with the teacher at work than from its store, embeddings frozen."""
    from stillroom.learner import Learner
    from stillroom.models.zoo import build
    from stillroom.objectives import match
    from stillroom.pipeline.teaching import open_knowledge, trained
    from stillroom.teachers import Live
    from stillroom.train import train

    torch.set_num_threads(1)
    module, encode = trained(experiment, "", folder)
    arm = experiment.main
    data = arm.data(experiment.data)
    settings = arm.training.model_copy(update={"steps": 60, "epochs": None, "gradient_norms_every": 0})
    options = {**arm.config["model"]["options"], "frozen": True}

    def steps(teacher: Any) -> Any:
        torch.manual_seed(0)
        student = build("bilstm", shape=tuple(arm.config["shape"]), classes=len(experiment.data.classes), **options)
        learner = Learner(student, [match("labels", weight=0.1), match("kd", weight=0.9)], encode=arm.encode)
        return train(learner, data, teacher, settings, rows=arm.rows(data), views=experiment.views)

    teachers = {"store": open_knowledge(experiment, folder)[""], "live": Live(module, ["logits"], encode=encode)}
    running = {name: steps(teacher) for name, teacher in teachers.items()}
    times: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(14):
        for name, one in running.items():
            began = time.perf_counter()
            next(one)
            if turn >= 3:
                times[name].append(time.perf_counter() - began)
    ratios = [live / stored for live, stored in zip(times["live"], times["store"], strict=True)]
    return {"ratio": statistics.median(ratios), "pairs": ratios, "ms": 1e3 * statistics.median(times["store"])}


# --- the tables ---------------------------------------------------------------------------------------------


def measured(language: str, folder: Path, seeds: list[int], quick: bool, past: bool) -> dict[str, Any]:
    """Return everything that is told of one language."""
    began = time.time()
    experiment, metrics = run(recipe_of(language, seeds, quick), folder)
    torch.set_num_threads(1)
    result = {
        "metrics": metrics,
        "baselines": baselines(experiment, language),
        "latency": latencies(experiment, folder),
        "epoch": epoch_ratio(experiment, folder),
    }
    if language == "en" and past:
        result["own past"] = past_arms(experiment, seeds)
    return result | {"minutes": (time.time() - began) / 60}


def span(found: dict[str, Any] | None, scale: float = 100.0) -> str:
    """Return a mean with its interval."""
    if not found:
        return "–"
    low, high = found.get("low"), found.get("high")
    interval = "" if low is None or high is None else f" [{scale * low:.1f}, {scale * high:.1f}]"
    return f"{scale * found['mean']:.1f}{interval}"


def table(result: dict[str, Any]) -> list[str]:
    """Return the table of one language as markdown."""
    metrics = result["metrics"]
    lines = [
        "| | accuracy % | gap closed %, 95 % | agrees with the teacher % | parameters |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, model in metrics["models"].items():
        if name == "distilled":
            continue
        gap = (metrics.get("gaps") or {}).get(name)
        scores = model["score"]["per_seed"]
        spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        agrees = f"{100 * model['agreement']['mean']:.1f}" if "agreement" in model else "–"
        count = f"{model['parameters']['mean']:,.0f}" if model.get("parameters") else "–"
        lines.append(f"| {name} | {100 * model['score']['mean']:.1f}{spread} | {span(gap)} | {agrees} | {count} |")
    for name, found in result.get("own past", {}).items():
        scores = found["per_seed"]
        spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        lines.append(f"| own past: {name} | {100 * statistics.mean(scores):.1f}{spread} | – | – | – |")
    for title, found in result["baselines"].items():
        for name, score in found.items():
            lines.append(f"| {name}, {title} | {100 * score:.1f} | – | – | – |")
    return lines


def targets(results: dict[str, Any]) -> list[str]:
    """Return each mark with what was measured, met or missed."""
    lines = ["| mark | asked | measured | met |", "| --- | --- | --- | --- |"]

    def add(mark: str, asked: str, value: str, met: bool) -> None:
        lines.append(f"| {mark} | {asked} | {value} | {'yes' if met else 'no'} |")

    for language, result in results.items():
        models, linears = result["metrics"]["models"], result["baselines"]["all labels"]
        tfidf = linears["TF-IDF + logistic regression"]
        lead = 100 * (models["teacher"]["score"]["mean"] - tfidf)
        least, asked = (3.0, "3 points at least") if language == "en" else (0.0, "above")
        title = f"{language}: teacher above TF-IDF with all labels, {result['metrics']['data']['test']:,} test texts"
        add(title, asked, f"{lead:+.1f} points", lead > 0 and lead >= least)
        if language == "en":
            gap = result["metrics"].get("gap_closed")
            add("en: gap closed", "50 % at least", f"{span(gap)} %", bool(gap) and gap["mean"] >= 0.5)
            for name, least in (("student", 10), ("student int8", 15)):
                ratio = result["latency"]["ratio"][name]
                add(f"latency of the teacher over the {name}'s, ONNX", f"{least}x", f"{ratio:.0f}x", ratio >= least)
            ratio = result["epoch"]["ratio"]
            add("a step with the live teacher over one from its store, embeddings frozen", "4x", f"{ratio:.1f}x",
                ratio >= 4)  # fmt: skip
    return lines


def keep(results: dict[str, Any], seeds: list[int]) -> Path:
    """Write tables and numbers into a folder of today's date."""
    from keeping import RECORDS, facts

    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    folder = RECORDS / f"{date}-text"
    folder.mkdir(parents=True, exist_ok=True)
    machine = facts()
    content = {"date": date, "machine": machine, "seeds": seeds, "languages": results}
    (folder / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# A transformer into a BiLSTM, {date}",
        "",
        "`python benchmarks/text.py --record`. " + " ".join((__doc__ or "").split("\n\n")[2].split()),
        "",
        *targets(results),
    ]
    for language, result in results.items():
        title = {"en": "English film reviews", "zh": "Chinese reviews"}[language]
        took = f"{result['minutes']:.0f} minutes, {len(seeds)} seeds."
        lines += ["", f"## {title}", "", f"{result['metrics']['verdict']} {took}", "", *table(result)]
        sentence = (result["metrics"].get("memory") or {}).get("sentence")
        lines += ["", sentence] if sentence else []
        times = ", ".join(f"{name} {value:.2f} ms" for name, value in result["latency"]["ms"].items())
        lines += ["", f"Latency of a text, one thread, median: {times}."]
    lines += ["", "Machine: " + "; ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    return folder.relative_to(RECORDS.parent.parent)


def main() -> None:
    """Run both languages and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--record", action="store_true", help="keep the result under benchmarks/records/")
    parser.add_argument("--without-past", action="store_true", help="leave out the students taught by their own past")
    parser.add_argument("--language", choices=("en", "zh"), action="append", help="one language only")
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="where runs are kept")
    options = parser.parse_args()
    seeds = [0] if options.quick else [0, 1, 2, 3, 4]
    results: dict[str, Any] = {}
    for language in options.language or ("zh", "en"):
        results[language] = measured(language, options.out / language, seeds, options.quick, not options.without_past)
        print(f"\n## {language}\n\n" + "\n".join(table(results[language])), flush=True)
    print("\n" + "\n".join(targets(results)))
    if options.record:
        print(f"Kept in {keep(results, seeds)}")


if __name__ == "__main__":
    main()
