"""What memory.py found, as tables, as targets met or missed with the reason, and as a record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from keeping import RECORDS, facts

from stillroom.statistics import over_seeds

MAIN = ("copy", "rows", "adding")
SURE, STATE, CAPACITY, FULL = 2, 0.8, 1.2, 0.7
PAIRS = (("memory", "logits"), ("logits", "alone"), ("memory-h", "logits"), ("memory+segments", "memory"))


def summary(result: dict[str, Any]) -> list[str]:
    """Return a case's heading, table and differences as lines of markdown."""
    teacher, memory = result["teacher"], result["memory"]
    cue = memory.get("before the cue")
    head = [
        "arm",
        "lr",
        f"{result['measure']}, 95 %",
        "each seed",
        "teacher's state, r2",
        "of possible",
        "capacity",
        "s",
    ]
    head += ["before the cue, of 9"] if cue else []
    rows = [["teacher", "", f"{teacher['test']:.4f}", "", "", "", _spread(memory["models"]["teacher"]["totals"])]]
    for name, arm in result["arms"].items():
        rows.append([name, f"{arm['rate']:g}", _interval(arm["score"], 4), _each(arm["scores"])])
    rows.append(["random weights", "", "", ""])
    for row in rows[1:]:
        held = memory["models"][row[0]]
        fits = [np.mean([fit[key] for fit in held["state"]]) for key in ("r2", "ratio")]
        row += [f"{fits[0]:.3f}", f"{fits[1]:.2f}", _spread(held["totals"])]
    for row in rows:
        row.append(f"{result['arms'][row[0]]['seconds a student']:.1f}" if row[0] in result["arms"] else "")
    for row in rows if cue else []:
        row.append(_spread(cue[row[0]]))
    assert all(len(row) == len(head) for row in rows)
    lines = [f"## {result['title']}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    lines += ["", "; ".join(f"{a} - {b}: {_interval(difference(result, a, b), 4)}" for a, b in _pairs(result)) + "."]
    ceiling = memory["models"]["alone"]["state"][0]["ceiling"]
    lines += [
        f"16 principal components of the teacher's state explain {ceiling:.3f} of it; rates tried: {_tried(result)}."
    ]
    return [*lines, ""]


def difference(result: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    """Return the paired difference of two arms' scores with its interval."""
    pairs = zip(result["arms"][one]["scores"], result["arms"][other]["scores"], strict=True)
    return over_seeds([a - b for a, b in pairs]).plain()


def targets(results: dict[str, Any]) -> list[list[str]]:
    """Return each target: what, aim, measured, met or missed, reason."""
    main = {name: results[name] for name in MAIN if name in results}
    leads = {name: difference(one, "memory", "logits") for name, one in main.items()}
    sure = [name for name, lead in leads.items() if (lead["low"] or 0) > 0]
    shown = "; ".join(f"{name} {_interval(lead, 4)}" for name, lead in leads.items())
    rows = [
        ["memory - logits above 0", f"on {SURE} of 3", shown, _met(len(sure) >= SURE), f"{len(sure)} of {len(main)}"]
    ]
    for name, one in main.items():
        ratio = float(np.mean([fit["ratio"] for fit in one["memory"]["models"]["memory"]["state"]]))
        rows.append([f"{name}: state r2 / possible", f">= {STATE}", f"{ratio:.2f}", _met(ratio >= STATE), ""])
    rows += [_capacity(name, one) for name, one in main.items()]
    for name, one in results.items():
        if name not in MAIN:  # no targets were set for these
            lead = _interval(difference(one, "memory", "logits"), 4)
            more = _capacity(name, one)[2]
            rows.append([f"beside these: {name}", "", f"memory - logits {lead}; capacity {more}", "", one["title"]])
    return rows


def _capacity(name: str, one: dict[str, Any]) -> list[str]:
    models = one["memory"]["models"]
    asked = ("teacher", "logits", "memory", "random weights")
    teacher, logits, memory, random = (float(np.mean(models[who]["totals"])) for who in asked)
    row = [f"{name}: capacity, memory / logits", f">= {CAPACITY} x", f"{memory / logits:.2f} x"]
    if logits >= FULL * models["logits"]["units"]:
        return [*row, "not asked", f"logits holds {logits:.1f} of {models['logits']['units']} already"]
    met = memory >= CAPACITY * logits
    why = "" if met else f"logits {logits:.1f}, memory {memory:.1f}, random weights {random:.1f}; "
    if not met and teacher < CAPACITY * logits:
        why += f"the teacher's 128 units hold {teacher:.1f} of independent inputs, less than the aim"
    elif not met:
        why += f"the teacher's 128 units hold {teacher:.1f}; the 16 follow what it keeps of real inputs"
    return [*row, _met(met), why]


def _met(yes: bool) -> str:
    return "met" if yes else "missed"


def _pairs(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in PAIRS if a in result["arms"] and b in result["arms"]]


def _interval(found: dict[str, Any], digits: int) -> str:
    if found["low"] is None:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _each(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _tried(result: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} " + ", ".join(f"{rate}: {score:.3f}" for rate, score in arm["search"].items())
        for name, arm in result["arms"].items()
    )


# --- the record --------------------------------------------------------------------------------------


def keep(results: dict[str, Any], command: str, seeds: list[int], seconds: float, told: str) -> Path:
    """Write ``records/<date>-memory/`` and return its path from here."""
    date, machine = datetime.now(UTC).date().isoformat(), facts()
    folder = RECORDS / f"{date}-memory"
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "date": date, "command": command, "seconds": round(seconds), "seeds": seeds, "machine": machine,
        "targets": targets(results), "cases": results,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(results, folder / "figure.svg")
    lines = [
        f"# Is memory passed on? {date}",
        "",
        f"`{command}`, {seconds / 60:.0f} minutes, seeds {seeds}. {told}",
        "",
    ]
    rows = [["target", "aim", "measured", "", "reason"], ["---"] * 5, *targets(results)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *_explained(results), ""]
    for one in results.values():
        lines += summary(one)
    lines += [_teachers(results), "", "![Scores by arm, and what is remembered step by step back](figure.svg)", ""]
    lines += ["Machine: " + "; ".join(f"{key} {_plain(value)}" for key, value in machine.items()) + ".", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    return folder.relative_to(RECORDS.parent.parent)


def _explained(results: dict[str, Any]) -> list[str]:
    borders = ", ".join(f"{name} {one['border']}" for name, one in results.items() if name in MAIN)
    times = _times(results)
    return [
        *times,
        "* Arms: `alone` labels; `logits` labels and the teacher's answers; `memory-h` the same and 3 x `memory` on",
        "  `memory@h`; `memory` the same and 1.5 x `memory_cells` on `memory@c`, stored every so many steps "
        f"({borders}); `memory+segments` the same and the",
        "  ends of stretches that start in the teacher's state. Batch 64, of rows 64 labelled and 64 of all images;",
        "  AdamW without decay, 5 % warm-up, cosine, clip 1.",
        "* Weights were tried out earlier with other seeds and other teachers, partly against the test rows of",
        "  Fashion-MNIST; adding and copy draw new rows here. Rates were chosen here, on validation only.",
        "* Numbers of steps were chosen beforehand, with other seeds, where answers alone do not yet suffice. Two",
        "  tasks at three times the steps, below, say how much of the lead is left; copy is there at twice the delay.",
        "* Teacher's state: r2 of a linear map from the student's h on real inputs, fitted on other rows; of possible:",
        "  beside what the first 16 principal components of the teacher's state explain.",
        "* Capacity: r2 of independent inputs 0 to 30 steps back, summed (h, at most 16 for a student, 128 for the",
        "  teacher). Before the cue: the same for the symbols of copy's own sequences, after the last blank; the 64",
        "  sequences are halved between fitting and asking. s: seconds a student, other programs running.",
        "* Copy has 64 different sequences, all of them trained on: its score says whether a memory was learnt at all,",
        "  not whether it serves on others. Brackets: 95 %, Student's t over seeds, paired for differences.",
        "  The rows on which copy's states are compared hold the same 64, too.",
        "* Random weights spread faint traces of everything over the state and hold more of independent inputs than",
        "  any student that was trained has on average: training lets go of what its task does not need.",
        "* A rate at the end of those tried (the memory arms' is often the greatest) need not be the best there is;",
        "  where an arm learns nothing in the given steps, its rate was chosen among equals.",
    ]


def _times(results: dict[str, Any]) -> list[str]:
    """Say what answers alone reach in three times the steps, which take about as long."""
    told = []
    for name in MAIN:
        if name in results and f"{name}-long" in results:
            short, long = results[name]["arms"]["memory"], results[f"{name}-long"]["arms"]["logits"]
            seconds = [one["seconds a student"] for one in (short, long)]
            told.append(
                f"{name} {short['score']['mean']:.4f} with memory ({seconds[0]:.1f} s a student) against "
                f"{long['score']['mean']:.4f} with answers alone for three times the steps ({seconds[1]:.1f} s)"
            )
    if not told:
        return []
    return [
        "* Equal steps are not equal time: a step with memory costs several times one with answers alone.",
        "  " + "; ".join(told) + ".",
    ]


def _teachers(results: dict[str, Any]) -> str:
    told = []
    for name, one in results.items():
        log = one["teacher"]["log"]
        if not name.endswith("-long"):
            steps = sum(stage["steps"] for stage in log)
            told.append(f"{name} {steps:,} steps in {len(log)} stages, {one['teacher']['test']:.4f} on test")
    return "Teachers: " + "; ".join(told) + "."


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw each task's scores by arm, and below how much of the input is remembered step by step back."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "stillroom"
    from matplotlib import pyplot

    main = [results[name] for name in MAIN if name in results]
    figure, axes = pyplot.subplots(2, len(main), figsize=(4.2 * len(main), 7), squeeze=False)
    for column, one in enumerate(main):
        _scores(axes[0][column], one)
        _curves(axes[1][column], one)
    axes[1][0].set_ylabel("r2 of independent inputs, from h")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _scores(axis: Any, one: dict[str, Any]) -> None:
    for place, (_, arm) in enumerate(one["arms"].items()):
        score = arm["score"]
        if score["low"] is not None:
            axis.plot([place, place], [score["low"], score["high"]], color="0.7", linewidth=3)
        axis.plot([place] * len(arm["scores"]), arm["scores"], "o", color="tab:blue", markersize=4)
        axis.plot(place, score["mean"], "_", color="black", markersize=14)
    axis.axhline(one["teacher"]["test"], color="tab:orange", linewidth=0.8)
    axis.set_xticks(range(len(one["arms"])), list(one["arms"]), rotation=20)
    axis.set_ylabel(one["measure"])
    axis.set_title(one["title"], fontsize=9)


def _curves(axis: Any, one: dict[str, Any]) -> None:
    for name, held in one["memory"]["models"].items():
        if name in ("teacher", "alone", "logits", "memory", "random weights"):
            axis.plot(np.mean(held["curves"], axis=0), label=name, linestyle=":" if name == "random weights" else "-")
    axis.set_ylim(0, 1)
    axis.set_xlabel("steps back")
    axis.legend(fontsize=7)
