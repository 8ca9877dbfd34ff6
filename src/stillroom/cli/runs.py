"""Commands on recipes and run folders: new, check, run, record, train, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.errors import UserError, say
from stillroom.paths import exists

if TYPE_CHECKING:
    from stillroom.pipeline.plan import Experiment
    from stillroom.pipeline.tasks import Task
    from stillroom.recipe import Recipe

RecipePath = Annotated[Path, typer.Argument(help="A recipe, for example recipes/images.yaml", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder (default: runs/<recipe name>)", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value: --set train.steps=200", show_default=False)
]
Tiny = Annotated[bool, typer.Option("--tiny", help="256 rows, 20 steps, one seed: the same path, in seconds")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Processes at once (default: one a core)", show_default=False)
]
SHIPPED = Path(__file__).parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Return the recipes that come with Stillroom, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def new(
    kind: Annotated[
        str, typer.Argument(help="A shipped recipe (none: list them); with --data, the file to write")
    ] = "",
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it (default: <kind>.yaml)", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Your own file of texts, table, NumPy archive or folder of pictures"),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="With --data: the column of labels")] = None,
    text: Annotated[str | None, typer.Option("--text", help="With --data: the column of texts")] = None,
) -> None:
    """Write a recipe to start from: a shipped one, or one for your own data.

    Examples: stillroom new images my.yaml; stillroom new --data reviews.csv my.yaml
    """
    from stillroom.cli.screen import out
    from stillroom.files import write_bytes

    if data is not None:
        from stillroom.recipe.starter import starter

        target = _free(Path(kind) if kind else Path(f"{data.name.split('.')[0]}.yaml"))
        write_bytes(target, starter(data, label=label, text=text).replace("THIS_FILE", str(target)).encode())
        out.print(f"Wrote {target}. Next: stillroom check {target}", markup=False)
        return
    recipes = shipped()
    if not kind:
        for name, place in recipes.items():
            lines = [
                line.strip("# ") for line in place.read_text(encoding="utf-8").splitlines() if line.startswith("#")
            ]
            out.print(
                f"{name:<16} {' '.join(line for line in lines[1:] if line).split('. ')[0].rstrip('.')}", markup=False
            )
        return
    if kind not in recipes:
        raise UserError(say("There is no such shipped recipe", f"'{kind}'", recipes))
    target = _free(path or Path(f"{kind}.yaml"))
    write_bytes(target, recipes[kind].read_bytes())
    out.print(f"Wrote {target}. Next: stillroom run {target}", markup=False)


def _free(target: Path) -> Path:
    if exists(target):
        raise UserError(f"{target} exists already: it is not overwritten. Name another file, or remove it.")
    return target


def check(recipe: RecipePath, set: Set = None, tiny: Tiny = False, as_json: Json = False) -> None:  # noqa: A002
    """Check a recipe: every mistake at once, then data, taps and shapes; nothing is trained.

    Example: stillroom check my.yaml
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.pipeline.checking import check_shapes
    from stillroom.pipeline.tasks import tasks_of

    read, experiment = _open(recipe, set, tiny)
    facts = check_shapes(experiment)
    if as_json:
        data = facts.pop("data")
        show_json(
            {
                "recipe": read.resolved(),
                "data": data,
                "arms": facts,
                "tasks": [task.name for task in tasks_of(experiment)],
            }
        )
        return
    for label, text in facts.items():
        out.print(f"{label:<10} {text}", markup=False)
    out.print(f"{recipe} is good: {len(tasks_of(experiment))} tasks. Next: stillroom run {recipe}", markup=False)


def run(
    recipe: RecipePath,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,  # noqa: A002
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and what is done already")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jobs: Jobs = None,
) -> None:
    """Run a recipe end to end: teacher, store, arms, control, export, report. Runs again from where it stopped.

    Example: stillroom run recipes/images.yaml --set train.steps=200
    """
    from stillroom.cli import screen
    from stillroom.pipeline.run import perform, processes_for
    from stillroom.pipeline.tasks import tasks_of
    from stillroom.progress import ticking

    read, experiment = _open(recipe, set, tiny)
    folder = _folder(read, out)
    if plan:
        _plan(experiment, folder, as_json, jobs or read.jobs)
        return
    tasks = tasks_of(experiment)
    processes = processes_for(jobs or read.jobs, len(tasks))
    titles = {task.name: task.title for task in tasks}
    with ticking(len(tasks) + 2, titles, quiet=quiet or as_json) as told:
        outcome = perform(experiment, folder, processes=processes, told=told)
    if as_json:
        screen.show_json(outcome.metrics)
        return
    screen.show_metrics(outcome.metrics)
    for note in outcome.metrics.get("notes", []):
        screen.out.print(f"note: {note}", markup=False)
    if tiny:
        screen.out.print("note: --tiny only tries the path; its numbers say nothing.", markup=False)
    screen.out.print(f"Report: {folder / 'report.html'}", markup=False)


def record(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, for example recipes/images.yaml", show_default=False)
    ] = None,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,
    quiet: Quiet = False,  # noqa: A002
    model: Annotated[
        Path | None, typer.Option("--model", help="Instead: features of this run or bundle", show_default=False)
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="With --model: a source, for example npz:FILE", show_default=False)
    ] = "",
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", min=1, help="With --model: the first N of a PCA", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="With --model: float32, float16, int8 or binary")] = "float32",
) -> None:
    """Record what a recipe's teacher shows; with --model, a student's features as a Parquet file.

    Example: stillroom record --model runs/features --data digits --out features.parquet
    """
    if model is not None:
        from stillroom.cli.features import record_features
        from stillroom.cli.models import _data, _load

        if recipe is not None:
            raise UserError(f"A recipe and --model are given: got {recipe} and {model}. Keep one of them.")
        record_features(
            model, _data(data, model), out or Path("features.parquet"), dimensions, dtype, quiet, load=_load
        )
        return
    if recipe is None:
        raise UserError(
            "There is nothing to record: got neither a recipe nor --model. Name one, for example: stillroom record "
            "my.yaml"
        )
    _part(recipe, out, set, tiny, quiet, lambda task: task.kind in ("teacher", "record"))


def train(
    recipe: RecipePath,
    arm: Annotated[str, typer.Option("--arm", help="Which arm (default: the first)", show_default=False)] = "",
    seed: Annotated[
        int | None, typer.Option("--seed", help="Which of the recipe's seeds (default: all)", show_default=False)
    ] = None,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,
    quiet: Quiet = False,  # noqa: A002
) -> None:
    """Train one arm of a recipe, and what it needs.

    Example: stillroom train recipes/images.yaml --arm alone --seed 0
    """
    from stillroom.pipeline.synthesis import owner_of

    read, experiment = _open(recipe, set, tiny)
    name = arm or experiment.main.name
    if name not in experiment.arms:
        raise UserError(say("The recipe has no such arm", f"'{name}'", experiment.arms))
    if seed is not None and seed not in experiment.seeds:
        raise UserError(say("The recipe has no such seed", seed, [str(one) for one in experiment.seeds]))

    def wanted(task: Task) -> bool:
        if task.kind in ("teacher", "record"):
            return experiment.arms[name].reads_teacher
        if task.kind == "examples":
            made = experiment.arms[name].distilled
            return made is not None and task.owner == owner_of(experiment, experiment.arms[name])
        return task.owner == name and (task.kind == "trial" or seed in (None, task.seed))

    _part(recipe, out, set, tiny, quiet, wanted)


def report(
    folders: Annotated[list[Path], typer.Argument(help="A run folder, or several to compare", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the comparison", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show a run's table and report, or compare several runs.

    Example: stillroom report runs/images runs/images-tiny
    """
    from stillroom.cli import screen
    from stillroom.report import compare, read_metrics, told_from, write_report

    if len(folders) == 1:
        metrics = read_metrics(folders[0])
        if as_json:
            screen.show_json(metrics)
            return
        with told_from(folders[0]):
            screen.show_metrics(metrics)
        screen.out.print(f"Report: {folders[0] / 'report.html'}", markup=False)
        return
    title, findings = compare(folders)
    target = out or Path("comparison.html")
    write_report(target, title=title, verdict=findings[0].sentence, findings=findings)
    if as_json:
        screen.show_json({"title": title, "verdict": findings[0].sentence, "report": str(target)})
        return
    screen.out.print(findings[0].sentence, markup=False)
    screen.out.print(f"Report: {target}", markup=False)


# --- shared -----------------------------------------------------------------------------------------------


def _open(recipe: Path, changes: list[str] | None, tiny: bool) -> tuple[Recipe, Experiment]:
    from stillroom.pipeline.recipes import experiment_of
    from stillroom.recipe import read_recipe

    read = read_recipe(recipe, set=changes or (), tiny=tiny)
    return read, experiment_of(read)


def _folder(recipe: Recipe, out: Path | None) -> Path:
    return out or Path("runs") / recipe.name


def _plan(experiment: Experiment, folder: Path, as_json: bool, jobs: int | str) -> None:
    from stillroom.cli import screen
    from stillroom.pipeline.checking import expectations
    from stillroom.pipeline.costing import seconds_of
    from stillroom.pipeline.run import pending, processes_for

    tasks = pending(experiment, folder)
    expected = expectations(experiment)
    left = [task for task, done in tasks if not done]
    seconds = seconds_of(experiment, left, processes_for(jobs, len(left))) if left else None
    if seconds is not None:
        expected["time"] = (
            f"about {max(1, round(seconds))} s for what is to do, {processes_for(jobs, len(left))} at once"
        )
    if as_json:
        listed = [{"task": task.name, "done": done} for task, done in tasks]
        screen.show_json({"folder": str(folder), "tasks": listed, "expected": expected})
        return
    rows = [[task.title, "done before" if done else "to do"] for task, done in tasks]
    screen.show_table(["task", "state"], rows, f"Plan for {folder}")
    for label, text in expected.items():
        screen.out.print(f"{label:<12} {text}", markup=False)


def _part(recipe: Path, out: Path | None, changes: list[str] | None, tiny: bool, quiet: bool, wanted: object) -> None:
    """Perform some of a recipe's tasks in this process."""
    from stillroom.cli import screen
    from stillroom.pipeline.checking import check_shapes
    from stillroom.pipeline.run import locked
    from stillroom.pipeline.space import check_place
    from stillroom.pipeline.tasks import Workshop, tasks_of, unfinished
    from stillroom.pipeline.workers import perform_here
    from stillroom.progress import ticking

    read, experiment = _open(recipe, changes, tiny)
    folder = _folder(read, out)
    tasks = [task for task in tasks_of(experiment) if wanted(task)]  # type: ignore[operator]
    if not tasks:
        raise UserError(f"{recipe} asks for no teacher: there is nothing to record. Add 'teacher:' to it.")
    check_shapes(experiment, 1)
    check_place(experiment, folder, unfinished(Workshop(experiment, folder), tasks))
    with locked(folder), ticking(len(tasks), {task.name: task.title for task in tasks}, quiet=quiet) as told:
        perform_here(Workshop(experiment, folder), tasks, told)
    screen.out.print(f"Done: {', '.join(task.title for task in tasks[-3:])}. In {folder}", markup=False)
