"""mine(): every panel on a model, each kept as a step of its own; then findings.json and a report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.contracts import Finding
from stillroom.data.leaving_out import rows_print
from stillroom.errors import UserError, say
from stillroom.files import begin, commit, committed, faultpoint, fingerprint, write_bytes, write_json
from stillroom.fingerprints import MAKERS, code_print, fingerprint_or_new
from stillroom.mining import Budget, Panel, Subject
from stillroom.mining.headline import headline, summary
from stillroom.mining.panels import ASK_THEMSELVES, OF_STUDENTS, TITLES, chosen, panel_called
from stillroom.models.bundle import load
from stillroom.paths import is_file
from stillroom.pipeline.asking import SPLITS, asked
from stillroom.pipeline.mined_recipe import mined_recipe
from stillroom.pipeline.plan import ALONE, Experiment
from stillroom.pipeline.recipes import experiment_of
from stillroom.pipeline.teaching import teacher_folder, trained
from stillroom.pipeline.workers import Told
from stillroom.progress import duration
from stillroom.recipe import Recipe, read_recipe
from stillroom.report import write_report

SECONDS = 20.0  # a panel may take, on one thread
KNOWN_BY = 64  # answers
Students = Mapping[str, Sequence[Subject]]


@dataclass(frozen=True, repr=False)
class Mined:
    """What was found: where it is written, the panels by name, and how long each took when it was done."""

    folder: Path
    panels: Mapping[str, Panel]
    seconds: Mapping[str, float]
    asked: Sequence[str] = ()

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(panel.findings)}" for name, panel in self.panels.items())
        return f"{self.headline}\n  findings: {counts}\nReport: {self.folder / 'report.html'}"

    @property
    def findings(self) -> list[Finding]:
        """All findings in reading order."""
        return [finding for panel in self.panels.values() for finding in panel.findings]

    @property
    def headline(self) -> str:
        """The most important of what was found, in one sentence."""
        return headline(self.panels)

    @property
    def notes(self) -> list[str]:
        """What was left out to keep to the budget, or could not be asked."""
        return [*self.asked, *(f"{name}: {note}" for name, panel in self.panels.items() for note in panel.notes)]


def mine(
    subject: Subject,
    folder: Path,
    *,
    students: Students | None = None,
    only: Sequence[str] = (),
    seconds: float = SECONDS,
    told: Told = lambda name, done, of, what: None,
    title: str = "",
    recipe: Recipe | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Mined:
    """Explain a model by its panels, into ``folder``: findings.json, report.html, and a folder of files for each panel.

    What is done is not done again, unless the model, its data or the code of mining has changed, or, for the panel of
    students, one of them. A panel that would take longer than ``seconds`` looks at fewer examples and says so. With the
    ``recipe`` that made the model, another is written from what was found, as recipe/recipe.yaml. ``options`` are those
    of panels by name: ``{"rules": {"fidelity": 0.9, "leaves": 32}, "concepts": {"tap": "layer3"}}``.

    Raises:
        UserError: there is no such panel, an option does not fit, or the folder cannot be written.
    """
    names = chosen(only, bool(students))
    inputs = _inputs(subject, seconds)
    panels, took, notes = {}, {}, list[str]()
    if set(names) - set(ASK_THEMSELVES):
        told("asking", 0, 0, "")
        notes, took["asking"] = asked(subject, folder / "asked", inputs, seconds, told)
        told("asking", 1, 1, "")
        for one in (one for seeds in (students or {}).values() for one in seeds):
            one.limit(subject.most)
    for name in names:
        told(name, 0, 0, "")
        budget = Budget(seconds, lambda done, of, what, name=name: told(name, done, of, what))  # type: ignore[misc]
        asked_of = (students or {},) if name in OF_STUDENTS else ()
        more = dict((options or {}).get(name, {}))
        panels[name], took[name] = _panel(name, folder / name, inputs, (subject, budget, *asked_of), more)
        told(name, 1, 1, "")
    if recipe is not None:
        began, pupils = (
            time.perf_counter(),
            next((seeds for one, seeds in (students or {}).items() if one != ALONE), ()),
        )
        panels["recipe"] = mined_recipe(recipe, panels, subject, pupils[0] if pupils else None)
        write_bytes(folder / "recipe" / "recipe.yaml", panels["recipe"].files["recipe.yaml"])
        took["recipe"] = time.perf_counter() - began
    mined = Mined(folder, panels, took, notes)
    faultpoint("mine:report")
    write_json(folder / "findings.json", _numbers(mined, subject))
    _report(mined, subject, title or f"What the {subject.name} knows")
    return mined


def _inputs(subject: Subject, seconds: float) -> dict[str, Any]:
    """What the result of any panel depends on, beside the panel itself."""
    return {
        "code": code_print((*MAKERS, "mining")),
        "data": getattr(subject.data, "fingerprint", None),
        "labels": getattr(subject.data, "labels_fingerprint", None),
        "classes": subject.classes,
        "splits": rows_print(subject.data),
        "model": _print_of(subject),
        "settings": [subject.asked_for, subject.seed, seconds],
    }


def _print_of(subject: Subject) -> dict[str, Any]:
    """By what a model is known, and how it reads examples; one that shows answers only is known by a few of those."""
    if subject.module is None:
        some = subject.data.splits["train"][:KNOWN_BY]
        return {"answers": subject.answer(subject.inputs(some)).tolist()}
    return {"module": fingerprint_or_new(subject.module, subject.encode)}


def _panel(
    name: str, folder: Path, inputs: Mapping[str, Any], asked_of: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Panel, float]:
    """A panel that was done before, or done now: ``asked_of`` are subject, budget and, where asked for, students."""
    students = {arm: [_print_of(one) for one in seeds] for pupils in asked_of[2:] for arm, seeds in pupils.items()}
    known = fingerprint({**inputs, "panel": name, "students": students, "options": dict(options)})
    found = committed(folder, known)
    if found is None:
        begin(folder, known)
        began = time.perf_counter()
        panel: Panel = panel_called(name)(*asked_of, **options)
        for file, content in panel.files.items():
            write_bytes(folder / file, content)
        kept = {
            "findings": [asdict(finding) for finding in panel.findings],
            "numbers": dict(panel.numbers),
            "files": list(panel.files),
            "notes": list(panel.notes),
            "seconds": round(time.perf_counter() - began, 2),
        }
        commit(folder, known, result=kept)
        found = committed(folder, known)
        assert found is not None
    kept = found["result"]
    files = {file: (folder / file).read_bytes() for file in kept["files"]}
    findings = [Finding(**finding) for finding in kept["findings"]]
    return Panel(name, findings, kept["numbers"], files, kept["notes"]), float(kept["seconds"])


def _numbers(mined: Mined, subject: Subject) -> dict[str, Any]:
    return {
        "headline": mined.headline,
        "model": subject.name,
        "data": {"name": getattr(subject.data, "name", ""), "kind": subject.kind, "classes": subject.classes},
        "panels": {
            name: {
                "findings": [
                    {"title": one.title, "sentence": one.sentence, "number": one.number, "control": one.control}
                    for one in panel.findings
                ],
                "numbers": panel.numbers,
                "files": [f"{name}/{file}" for file in panel.files],
                "notes": list(panel.notes),
                "seconds": mined.seconds[name],
            }
            for name, panel in mined.panels.items()
        },
    }


def _report(mined: Mined, subject: Subject, title: str) -> None:
    facts: dict[str, object] = {
        "data": f"{getattr(subject.data, 'name', 'data')}, {subject.kind}s",
        "asked about": f"at most {subject.most:,} examples of each split",
        "time by panel": {name: duration(seconds) for name, seconds in mined.seconds.items()},
    }
    if mined.notes:
        facts["left out"] = "\n".join(mined.notes)
    write_report(
        mined.folder / "report.html",
        title=title,
        subtitle=_subtitle(subject),
        verdict=mined.headline,
        summary=summary(mined.panels),
        findings=mined.findings,
        facts=facts,
        chapters=[(TITLES.get(name, name), len(panel.findings)) for name, panel in mined.panels.items()],
    )


def _subtitle(subject: Subject) -> str:
    """The model in words, and on which rows it was asked."""
    model = "a model that shows answers only" if subject.module is None else type(subject.module).__name__
    rows = ", ".join(f"{len(subject.examples(split)):,} {split}" for split in SPLITS)
    data = getattr(subject.data, "name", "data")
    return f"Model: {model} · Data: {data}, {len(subject.classes):,} classes · Asked about: {rows}"


# --- what there is in a run ----------------------------------------------------------------------------


def subjects_of_run(run: Path, model: str = "") -> tuple[Subject, dict[str, list[Subject]]]:
    """Return the teacher of a run to be mined, and its students by arm.

    ``model`` names the teacher where there are several, or an arm, whose first student is then mined by itself. A run
    without a teacher gives its first arm's.

    Raises:
        UserError: the folder is no run, is not finished, or has no such model.
    """
    if not is_file(run / "recipe.yaml"):
        raise UserError(say("This is no run folder", str(run), "a folder that 'stillroom run' has written"))
    experiment = experiment_of(read_recipe(run / "recipe.yaml"))
    opened = [name for name, plan in experiment.teachers.items() if plan.make is not None]
    known = [name or "teacher" for name in opened]
    if model and model not in (*known, *experiment.arms):
        raise UserError(say(f"The run {run} has no such model to mine", f"'{model}'", [*known, *experiment.arms]))
    teacher = opened[known.index(model)] if model in known else next(iter(opened), None)
    if model in experiment.arms or teacher is None:
        return _student(experiment, run, model or experiment.main.name, experiment.seeds[0]), {}
    if not is_file(teacher_folder(run, teacher) / "done.json") and experiment.teachers[teacher].training is not None:
        raise UserError(f"The run {run} is not finished: got no trained teacher. Finish it: stillroom run RECIPE.")
    module, encode = trained(experiment, teacher, run)
    students = {name: [_student(experiment, run, name, seed) for seed in experiment.seeds] for name in experiment.arms}
    return Subject(experiment.data, module, encode, name=teacher or "teacher"), students


def recipe_of_run(run: Path, model: str = "") -> Recipe | None:
    """Return the recipe of a run, for another to be mined from it; None where not its only teacher is mined."""
    if not is_file(run / "recipe.yaml"):
        return None
    recipe = read_recipe(run / "recipe.yaml")
    return recipe if recipe.teacher is not None and model in ("", "teacher") else None


def _student(experiment: Experiment, run: Path, name: str, seed: int) -> Subject:
    arm, folder = experiment.arms[name], run / "arms" / f"{name}-{seed}"
    if not is_file(folder / "config.json"):
        raise UserError(f"The run {run} is not finished: got no {folder}. Finish it: stillroom run RECIPE.")
    part = load(folder, model=arm.make_student(seed), encode=arm.encode)
    return Subject(experiment.data, part.model, part.encode, name=name)
