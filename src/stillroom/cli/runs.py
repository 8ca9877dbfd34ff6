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

RecipePath = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="A recipe file, for example recipes/images.yaml", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Run folder (default: runs/NAME of the recipe)", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, --set train.steps=200; may be repeated", show_default=False
    ),
]
Tiny = Annotated[bool, typer.Option("--tiny", help="Try the whole path in seconds: 256 rows, 20 steps, one seed")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", metavar="NUMBER", min=1, help="Processes to use (default: one per core)", show_default=False
    ),
]
SHIPPED = Path(__file__).parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Return the recipes that come with Stillroom, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="A shipped recipe (without it they are listed); with --data, the file to write",
            show_default=False,
        ),
    ] = "",
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to write (default: NAME.yaml)", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Your own file of texts, table, NumPy archive or folder of pictures",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="With --data: the column of labels", show_default=False),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="NAME", help="With --data: the column of texts", show_default=False),
    ] = None,
) -> None:
    """Write a recipe: a shipped one, or one for your own data.

    Example: stillroom new images my.yaml

    Example: stillroom new --data reviews.csv my.yaml
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
    """Check a recipe, its data, taps and shapes; train nothing.

    All mistakes in the recipe are reported at once, with their lines. Then the data is opened and every model reads
    four rows of it.

    Example: stillroom check my.yaml
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.pipeline.checking import check_shapes
    from stillroom.pipeline.notes import few_rows, notes_of
    from stillroom.pipeline.run import titles_of
    from stillroom.progress import waiting

    read, experiment = _open(recipe, set, tiny)
    with waiting("checking taps and shapes"):
        facts = check_shapes(experiment)
    with waiting("reading the data for what to note"):
        notes = [*notes_of(experiment), *few_rows(experiment)]
    _warn_of_precision(experiment)
    names = list(titles_of(experiment))
    if as_json:
        data = facts.pop("data")
        show_json({"recipe": read.resolved(), "data": data, "arms": facts, "tasks": names, "notes": notes})
        return
    for label, text in facts.items():
        out.print(f"{label + ':':<10} {text}", markup=False)
    for note in notes:
        out.print(f"note: {note}", markup=False)
    out.print(f"{recipe} is good: {len(names)} tasks. Next: stillroom run {recipe}", markup=False)


def run(
    recipe: RecipePath,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,  # noqa: A002
    plan: Annotated[bool, typer.Option("--plan", help="Show tasks, time and disk space needed; run nothing")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jobs: Jobs = None,
) -> None:
    """Run a recipe: train, distil, compare, export, report.

    A run that was stopped goes on where it stopped: run the same command again.

    Example: stillroom run recipes/images.yaml --set train.steps=200
    """
    from stillroom.cli import screen
    from stillroom.pipeline.run import LAST, perform, processes_for, titles_of
    from stillroom.progress import ticking

    read, experiment = _open(recipe, set, tiny, quiet)
    folder = _folder(read, out)
    _warn_of_precision(experiment)
    if plan:
        _plan(experiment, folder, as_json, jobs or read.jobs, quiet)
        return
    titles = titles_of(experiment)
    processes = processes_for(jobs or read.jobs, len(titles) - len(LAST))
    with ticking(len(titles), titles, quiet=quiet) as told:
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
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="A recipe file, for example recipes/images.yaml", show_default=False),
    ] = None,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,
    quiet: Quiet = False,  # noqa: A002
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FOLDER",
            help="Instead of a recipe: record features of this run or bundle",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="SOURCE", help="With --model: a source, for example npz:FILE", show_default=False
        ),
    ] = "",
    dimensions: Annotated[
        int | None,
        typer.Option(
            "--dimensions",
            metavar="NUMBER",
            min=1,
            help="With --model: as many principal components",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAME", help="With --model: float32, float16, int8 or binary")
    ] = "float32",
) -> None:
    """Record a teacher's outputs in a store, or features in a file.

    With a recipe, its teacher is trained if need be and its outputs are recorded for the students. With --model, the
    features of a trained model are written to a Parquet file.

    Example: stillroom record --model runs/features --data digits --out features.parquet
    """
    if model is not None:
        from stillroom.cli.features import record_features
        from stillroom.cli.models import _data, _load
        from stillroom.progress import waiting

        if recipe is not None:
            raise UserError(f"A recipe and --model are given: got {recipe} and {model}. Keep one of them.")
        with waiting("opening the data", quiet=quiet):
            source = _data(data, model)
        record_features(model, source, out or Path("features.parquet"), dimensions, dtype, quiet, load=_load)
        return
    if recipe is None:
        raise UserError(
            "There is nothing to record: got neither a recipe nor --model. Name one, for example: stillroom record "
            "my.yaml"
        )
    _part(recipe, out, set, tiny, quiet, lambda task: task.kind in ("teacher", "record"))


def train(
    recipe: RecipePath,
    arm: Annotated[
        str, typer.Option("--arm", metavar="NAME", help="Arm to train (default: the first)", show_default=False)
    ] = "",
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="NUMBER", help="One of the recipe's seeds (default: all)", show_default=False),
    ] = None,
    out: Out = None,
    set: Set = None,
    tiny: Tiny = False,
    quiet: Quiet = False,  # noqa: A002
) -> None:
    """Train one arm of a recipe, and the teacher that it needs.

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
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several to compare", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Comparison to write (default: comparison.html)", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the results of a run, or compare several runs.

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


def _open(recipe: Path, changes: list[str] | None, tiny: bool, quiet: bool = False) -> tuple[Recipe, Experiment]:
    from stillroom.progress import waiting

    with waiting("opening the recipe, its data and models", quiet=quiet):
        from stillroom.pipeline.recipes import experiment_of
        from stillroom.recipe import read_recipe

        read = read_recipe(recipe, set=changes or (), tiny=tiny)
        return read, experiment_of(read)


def _warn_of_precision(experiment: Experiment) -> None:
    from stillroom.pipeline.costing import slow_precision
    from stillroom.progress import warn

    if (slow := slow_precision(experiment)) is not None:
        warn(slow)


def _folder(recipe: Recipe, out: Path | None) -> Path:
    return out or Path("runs") / recipe.name


def _plan(experiment: Experiment, folder: Path, as_json: bool, jobs: int | str, quiet: bool) -> None:
    from stillroom.cli import screen
    from stillroom.pipeline.checking import expectations
    from stillroom.pipeline.costing import estimated, made_once
    from stillroom.pipeline.notes import few_rows, notes_of
    from stillroom.pipeline.run import LAST, pending, processes_for
    from stillroom.progress import waiting

    experiment = made_once(experiment)
    with waiting("looking for what is done already", quiet=quiet):
        tasks = pending(experiment, folder)
    with waiting("sizing what is recorded", quiet=quiet):
        expected = expectations(experiment)
        notes = [*notes_of(experiment), *few_rows(experiment)]
    left = [task for task, done in tasks if not done]
    estimate = None
    if left:
        with waiting("timing a few steps", quiet=quiet) as told:
            estimate = estimated(experiment, left, processes_for(jobs, len(left)), told)
    expected |= estimate.told() if estimate is not None else {}
    if as_json:
        listed = [{"task": task.name, "done": done} for task, done in tasks]
        seconds = {} if estimate is None else {"seconds": {"all": estimate.seconds, **estimate.kinds}}
        screen.show_json({"folder": str(folder), "tasks": listed, "expected": expected, "notes": notes, **seconds})
        return
    rows = [[task.title, "done" if done else "to do"] for task, done in tasks]
    rows += [[title, "to do" if left else "done again"] for title in LAST.values()]
    screen.show_table(["task", "state"], rows, f"Plan for {folder}")
    for label, text in expected.items():
        screen.out.print(f"{label + ':':<12} {text}", markup=False)
    for note in notes:
        screen.out.print(f"note: {note}", markup=False)


def _part(recipe: Path, out: Path | None, changes: list[str] | None, tiny: bool, quiet: bool, wanted: object) -> None:
    """Perform some of a recipe's tasks in this process."""
    from stillroom.cli import screen
    from stillroom.pipeline.checking import check_shapes
    from stillroom.pipeline.run import locked
    from stillroom.pipeline.space import check_place
    from stillroom.pipeline.tasks import Workshop, tasks_of, unfinished
    from stillroom.pipeline.workers import perform_here
    from stillroom.progress import aside, ticking

    read, experiment = _open(recipe, changes, tiny, quiet)
    folder = _folder(read, out)
    _warn_of_precision(experiment)
    tasks = [task for task in tasks_of(experiment) if wanted(task)]  # type: ignore[operator]
    if not tasks:
        raise UserError(f"{recipe} asks for no teacher: there is nothing to record. Add 'teacher:' to it.")
    with ticking(len(tasks), {task.name: task.title for task in tasks}, quiet=quiet) as told:
        with aside(told, "checking taps and shapes"):
            check_shapes(experiment, 1)
            check_place(experiment, folder, unfinished(Workshop(experiment, folder), tasks))
        with locked(folder):
            perform_here(Workshop(experiment, folder), tasks, told)
    screen.out.print(f"Done: {'; '.join(task.title for task in tasks[-3:])}. In {folder}", markup=False)
