"""The command that turns a black box into a white one."""

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


def mine(
    run: Annotated[Path, typer.Argument(help="A run folder, or a bundle with --data", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", help="A teacher or an arm of the run (default: its teacher)", show_default=False)
    ] = "",
    data: Annotated[
        str, typer.Option("--data", help="For a bundle: fashion-mnist-sample, npz:FILE, ...", show_default=False)
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Some panels, by name; repeat it", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="At most so long for a panel")] = SECONDS,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of a panel: rules.fidelity=0.9, rules.leaves=32; repeat it", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder (default: RUN/mining)", show_default=False)] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Write here the recipe that follows", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else")] = False,
) -> None:
    """Dig out what a trained model knows: findings with their controls, as a report, numbers and files.

    What is found is kept: the same command again answers at once.

    Example: stillroom mine runs/images

    A recipe from what was found: stillroom mine runs/images --recipe mined.yaml

    A student by itself, two panels: stillroom mine runs/images --model kd --only answers --only similarity

    Longer rules, another layer: stillroom mine runs/images --set rules.leaves=32 --set concepts.tap=block2
    """
    from stillroom.files import write_bytes
    from stillroom.mining.options import read_options
    from stillroom.mining.panels import chosen
    from stillroom.pipeline.mining import mine as dig
    from stillroom.pipeline.mining import recipe_of_run
    from stillroom.progress import ticking

    chosen(only or [], True)
    more = read_options(options or [])
    if recipe is not None:
        _may_write(recipe)
    subject, students = _subjects(run, model, data)
    base = None if data else recipe_of_run(run, model)
    if recipe is not None and base is None:
        given = f"{run}{f', --model {model}' if model else ''}{f', --data {data}' if data else ''}"
        allowed = "a run folder whose recipe has one teacher, that teacher mined"
        raise UserError(say("No recipe can be mined", given, allowed, "Leave --recipe out, or mine such a run."))
    folder = out or run / "mining"
    with ticking(len(chosen(only or [], bool(students))), {}, quiet=quiet or as_json) as told:
        mined = dig(
            subject, folder, students=students, only=only or [], seconds=seconds, told=told, recipe=base, options=more
        )
    if recipe is not None:
        write_bytes(recipe, mined.panels["recipe"].files["recipe.yaml"])
    _show(mined, folder, recipe, as_json=as_json)


def _show(mined: Mined, folder: Path, recipe: Path | None, *, as_json: bool) -> None:
    from stillroom.cli import screen

    if as_json:
        screen.show_json(
            {
                "folder": str(folder),
                "findings": [{"title": one.title, "sentence": one.sentence} for one in mined.findings],
                "notes": mined.notes,
                "seconds": dict(mined.seconds),
            }
        )
        return
    for finding in mined.findings:
        screen.out.print(f"{finding.title}: {finding.sentence}", markup=False)
    for note in mined.notes:
        screen.out.print(f"note: {note}", markup=False)
    screen.out.print(", ".join(f"{name} {took:.1f} s" for name, took in mined.seconds.items()), markup=False)
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
    deployed, source = _load(run), _data(data, run)
    _fits(deployed, source)
    return Subject(source, deployed.model, deployed.encode, name="model"), {}
