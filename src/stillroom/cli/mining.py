"""The command mine: an interpretability report of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.errors import UserError, say
from stillroom.paths import exists, is_file, is_folder

if TYPE_CHECKING:
    from stillroom.mining import Subject
    from stillroom.pipeline.mining import Mined

SECONDS = 20.0
ASKING = "asking"  # what the pipeline calls the pass over the data that all panels share

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a bundle with --data", show_default=False)]
Model = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="A teacher or an arm of the run (default: its teacher)", show_default=False
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        "--data", metavar="SOURCE", help="For a bundle: fashion-mnist-sample, npz:FILE, ...", show_default=False
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="PANEL", help="Run this panel alone, such as rules; may be repeated", show_default=False
    ),
]
Seconds = Annotated[float, typer.Option("--seconds", metavar="NUMBER", min=1.0, help="Time limit of each panel")]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Option of a panel, --set rules.leaves=32; may be repeated",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Folder to write (default: RUN/mining)", show_default=False),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Write a recipe that follows from the findings", show_default=False),
]
Verbose = Annotated[
    bool | None,
    typer.Option("--verbose/--quiet", help="Print every finding; show no progress", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output")]


def mine(
    run: Run,
    model: Model = "",
    data: DataName = "",
    only: Only = None,
    seconds: Seconds = SECONDS,
    options: Options = None,
    out: Out = None,
    recipe: RecipeFile = None,
    verbose: Verbose = None,
    as_json: Json = False,
) -> None:
    """Explain a trained model: an interpretability report.

    Panels look at its answers, rules that imitate it, attributions, concepts, influential examples and layers; each
    finding stands beside its control. Results are kept, so the same command again answers at once.

    Example: stillroom mine runs/images

    A recipe from what was found: stillroom mine runs/images --recipe mined.yaml

    A student by itself, two panels: stillroom mine runs/images --model kd --only answers --only similarity

    Longer rules, another layer: stillroom mine runs/images --set rules.leaves=32 --set concepts.tap=block2
    """
    from stillroom.files import write_bytes
    from stillroom.mining.options import read_options
    from stillroom.mining.panels import chosen
    from stillroom.pipeline.mining import mine as explain
    from stillroom.pipeline.mining import recipe_of_run
    from stillroom.progress import ticking, waiting

    chosen(only or [], True)
    more = read_options(options or [])
    if recipe is not None:
        _may_write(recipe)
    with waiting("opening the model and its data", quiet=verbose is False):
        subject, students = _subjects(run, model, data)
    base = None if data else recipe_of_run(run, model)
    if recipe is not None and base is None:
        given = f"{run}{f', --model {model}' if model else ''}{f', --data {data}' if data else ''}"
        allowed = "a run folder whose recipe has one teacher, that teacher mined"
        raise UserError(say("No recipe can be mined", given, allowed, "Leave --recipe out, or mine such a run."))
    folder = out or run / "mining"
    panels, silent = [ASKING, *chosen(only or [], bool(students))], verbose is False
    with ticking(len(panels), {name: name for name in panels} | {ASKING: "the model's answers"}, quiet=silent) as told:
        mined = explain(
            subject, folder, students=students, only=only or [], seconds=seconds, told=told, recipe=base, options=more
        )
    if recipe is not None:
        write_bytes(recipe, mined.panels["recipe"].files["recipe.yaml"])
    _show(mined, folder, recipe, as_json=as_json, verbose=bool(verbose))


def _show(mined: Mined, folder: Path, recipe: Path | None, *, as_json: bool, verbose: bool) -> None:
    from stillroom.cli import screen
    from stillroom.mining.headline import first_sentence
    from stillroom.progress import duration

    if as_json:
        screen.show_json(
            {
                "folder": str(folder),
                "headline": mined.headline,
                "findings": [{"title": one.title, "sentence": one.sentence} for one in mined.findings],
                "notes": mined.notes,
                "seconds": dict(mined.seconds),
            }
        )
        return
    screen.out.print(mined.headline, markup=False)
    if verbose:
        for finding in mined.findings:
            screen.out.print(f"{finding.title}: {finding.sentence}", markup=False)
        for note in mined.notes:
            screen.out.print(f"note: {note}", markup=False)
        screen.out.print(", ".join(f"{name} {duration(took)}" for name, took in mined.seconds.items()), markup=False)
    else:
        for name, panel in mined.panels.items():
            said = first_sentence(panel.findings[0].sentence) if panel.findings else "nothing (see --verbose)"
            screen.out.print(f"{name:<12} {said}", markup=False)
        notes = f", {len(mined.notes)} note{'s' * (len(mined.notes) != 1)}" if mined.notes else ""
        screen.out.print(f"{len(mined.findings)} findings{notes}: --verbose prints them all.", markup=False)
    if recipe is not None:
        screen.out.print(f"Recipe: {recipe}", markup=False)
    screen.out.print(f"Report: {folder / 'report.html'}", markup=False)


def _may_write(recipe: Path) -> None:
    """See that the mined recipe can be written before anything is mined, and that it takes no other file's place."""
    from stillroom.pipeline.mined_recipe import MADE

    do = "Give another path to --recipe."
    if is_folder(recipe):
        raise UserError(say("The mined recipe is a file", f"{recipe}, a folder", "a path such as mined.yaml", do))
    if not is_folder(recipe.parent):
        allowed = "a folder that exists"
        raise UserError(say("The mined recipe has no folder to lie in", recipe.parent, allowed, f"Make it, or: {do}"))
    if exists(recipe) and not recipe.read_bytes().startswith(MADE.encode()):
        given, allowed = f"{recipe}, which exists and was not mined", "a new path, or a mined recipe to write anew"
        raise UserError(say("The mined recipe would take another file's place", given, allowed, do))


def _subjects(run: Path, model: str, data: str) -> tuple[Subject, dict[str, list[Subject]]]:
    """Return what is mined: a run's teacher with its students, or a bundle by itself."""
    from stillroom.cli.models import _data, _fits, _load
    from stillroom.mining import Subject
    from stillroom.pipeline.mining import subjects_of_run

    if is_file(run / "recipe.yaml") and not data:
        return subjects_of_run(run, model)
    if not is_file(run / "config.json"):
        allowed = "a run folder, or a bundle with --data"
        raise UserError(say("There is nothing to mine", run, allowed, "Run a recipe first: stillroom run RECIPE."))
    if model:
        raise UserError(
            say("--model chooses among the models of a run", f"a bundle, {run}", "a run folder", "Leave it out.")
        )
    deployed = _load(run)
    source = _data(data, run, deployed.config.get("input"))
    _fits(deployed, source)
    return Subject(source, deployed.model, deployed.encode, name="model"), {}
