"""Commands on models and data: evaluate, predict, export, data, version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.errors import DataError, UserError, say
from stillroom.paths import is_file

if TYPE_CHECKING:
    from stillroom.contracts import Source
    from stillroom.models.bundle import Deployed

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else")]
Model = Annotated[Path, typer.Argument(help="A bundle or a run folder, for example runs/images", show_default=False)]
DataName = Annotated[
    str, typer.Option("--data", help="A source: fashion-mnist-sample, images:PATH, npz:FILE, ...", show_default=False)
]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MORE]...", help="More tasks after --on, teachers after --teachers", show_default=False),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teachers", help="Which of these suits the student MODEL: bundles, runs, stores", show_default=False
    ),
]

data_app = typer.Typer(
    help="Look at sources of data.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: stillroom data show fashion-mnist-sample",
)


def evaluate(
    model: Model,
    more: More = None,
    data: DataName = "",
    split: Annotated[str, typer.Option("--split", help="train, validation or test")] = "test",
    on: Annotated[
        list[str] | None,
        typer.Option("--on", help="Try its features on other tasks: digits, npz:FILE, ...", show_default=False),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=50, help="With --on: labelled rows from which each task is learnt")
    ] = 2000,
    report: Annotated[
        Path | None, typer.Option("--out", help="With --on: write a report here", show_default=False)
    ] = None,
    attack: Annotated[
        str, typer.Option("--attack", help="Also under attack, so far: 8/255 of the inputs' range", show_default=False)
    ] = "",
    teachers: Teachers = None,
    as_json: Json = False,
) -> None:
    """Measure a model on a split; with --on, what its features are worth on other tasks.

    With --teachers, MODEL is a student (a folder, or a name such as cnn:width=8) and the best of them is named.

    Example: stillroom evaluate runs/images --data fashion-mnist-sample

    Example: stillroom evaluate cnn:width=8 --teachers runs/a/teacher runs/b/knowledge --data digits
    """
    from stillroom.cli.attacking import attacked, size_of
    from stillroom.cli.features import evaluate_on
    from stillroom.cli.screen import out, show_json
    from stillroom.cli.teachers import evaluate_teachers
    from stillroom.evaluate import evaluate as measure

    size = size_of(attack) if attack else None
    if teachers:
        if on or attack or report is not None:
            raise UserError("--teachers is a question of its own: got --on, --attack or --out beside it. Leave it out.")
        chosen = [*teachers, *(more or ())]
        evaluate_teachers(model, chosen, data, as_json, load=_load, open_data=_data, fits=_fits, split=split)
        return
    if on and attack:
        raise UserError("--attack measures a model on its own task: got --on beside it. Leave one of them out.")
    if on:
        evaluate_on(model, [*on, *(more or ())], rows, report, as_json, load=_load)
        return
    if more or report is not None:
        what = f"'{more[0]}'" if more else "--out"
        raise UserError(f"{what} belongs to --on or --teachers, which is not given. Name them first: --on digits.")
    deployed, source = _load(model), _data(data, model)
    _fits(deployed, source)
    found = measure(deployed, source, split=split)
    facts: dict[str, Any] = {
        "model": str(model),
        "data": getattr(source, "name", data),
        "split": split,
        "rows": len(source.splits[split]),
        **found,
        **({} if size is None else attacked(deployed, source, split, size, quiet=as_json)),
    }
    if as_json:
        show_json(facts)
        return
    for key, value in facts.items():
        out.print(f"{key:<10} {value:.4f}" if isinstance(value, float) else f"{key:<10} {value}", markup=False)


def predict(
    model: Model,
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of them, .npy/.npz arrays, files of texts, tables", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="A CSV file to write")] = Path("predictions.csv"),
    column: Annotated[str, typer.Option("--column", help="The column that holds the texts", show_default=False)] = "",
    encoding: Annotated[str, typer.Option("--encoding", help="What texts and tables are written in")] = "utf-8",
    as_json: Json = False,
) -> None:
    """Classify pictures, arrays, texts or tables and write class and probability of each to a CSV file.

    Texts are the rows of a .csv, .tsv or .jsonl file, or the lines of a .txt file. The columns of a table (.csv, .tsv,
    .jsonl, .parquet) are found by their names.

    Example: stillroom predict runs/images photos/ --out predictions.csv
    """
    from stillroom.cli.predicting import predictions, table
    from stillroom.cli.screen import out as screen
    from stillroom.cli.screen import show_json
    from stillroom.files import write_bytes

    answers, notes = predictions(_load(model), inputs, column=column, encoding=encoding)
    write_bytes(out, table(answers))
    if as_json:
        show_json({"file": str(out), "rows": len(answers), "notes": notes, "predictions": answers})
        return
    screen.print(f"Wrote {len(answers):,} prediction{'s' * (len(answers) != 1)} to {out}", markup=False)
    for note in notes:
        screen.print(note, markup=False)


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder to write")] = Path("exported"),
    data: DataName = "",
    int8: Annotated[bool, typer.Option("--int8", help="Also a quantised graph")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as safetensors and ONNX, checked on real rows.

    Example: stillroom export runs/images --int8 --out exported
    """
    from stillroom.cli.screen import bytes_text, show_json, show_table
    from stillroom.evaluate import plain_ids
    from stillroom.export import export as export_model

    deployed, source = _load(model), _data(data, model)
    _fits(deployed, source)
    train, test = source.splits["train"][:256], source.batch(plain_ids(source.splits["test"][:1000]))
    facts = export_model(
        deployed,
        out,
        examples=source.batch(plain_ids(train))["inputs"],
        check=(test["inputs"], test.get("labels")),
        int8=int8,
    )
    if as_json:
        show_json(facts)
        return
    rows = [
        [
            name,
            bytes_text(file["bytes"]),
            f"{file['latency_ms']:.3f}",
            f"{100 * file['agreement']:.1f} %",
            f"{file['max_abs_difference']:.2g}",
        ]
        for name, file in facts["files"].items()
        if "latency_ms" in file
    ]
    show_table(["file", "size", "ms a call", "agrees", "largest difference"], rows, f"Exported to {out}")


def version(as_json: Json = False) -> None:
    """Print the versions of Stillroom and of what it stands on.

    Example: stillroom version
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from stillroom.cli.screen import out, show_json

    found = {}
    for package in ("stillroom", "torch", "numpy", "pyarrow", "safetensors", "onnx", "onnxruntime"):
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if as_json:
        show_json(found)
        return
    for package, text in found.items():
        out.print(f"{package:<12} {text}", markup=False)


@data_app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the sources that a recipe can name, with their options.

    Example: stillroom data list
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.data.table import SOURCES, options_of

    found = {name: list(options_of(name)) for name in SOURCES}
    if as_json:
        show_json(found)
        return
    for name, options in found.items():
        out.print(f"{name:<22} {', '.join(options)}", markup=False)


@data_app.command()
def show(
    source: Annotated[
        str, typer.Argument(help="A source: fashion-mnist-sample, images:PATH, npz:FILE, ...", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Say what a source holds: rows, splits, classes, shape.

    Example: stillroom data show fashion-mnist-sample
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.pipeline.making import input_of

    opened = _data(source, None)
    facts: dict[str, Any] = {
        "name": getattr(opened, "name", source),
        "rows": len(opened),
        "classes": list(opened.classes or ()),
        "input": input_of(opened),
        "splits": {name: len(rows) for name, rows in opened.splits.items()},
        **_of_texts(opened),
        **_of_tables(opened),
    }
    if as_json:
        show_json(facts)
        return
    for key, value in facts.items():
        out.print(f"{key:<8} {', '.join(map(str, value)) if isinstance(value, list) else value}", markup=False)


def _of_texts(source: Source) -> dict[str, Any]:
    """Return what else there is to say of texts: the longest, one of them, and what was left out or cut."""
    if getattr(source, "modality", "") != "text":
        return {}
    train = source.splits["train"]
    lengths = source.lengths(train)  # type: ignore[attr-defined]
    notes = list(getattr(source, "notes", ()))
    return {
        "bytes": f"{int(lengths.median()):,} in the middle, {int(lengths.max()):,} at most",
        "example": " ".join(str(source.show(int(train[0]))).split())[:80],
        **({"notes": notes} if notes else {}),
    }


def _of_tables(source: Source) -> dict[str, Any]:
    """Return what else there is to say of a table: its columns, a row of it, and what was filled or left out."""
    if getattr(source, "modality", "") != "table":
        return {}
    notes = list(getattr(source, "notes", ()))
    return {
        "columns": list(source.names),  # type: ignore[attr-defined]
        "example": str(source.show(int(source.splits["train"][0]))),
        **({"notes": notes} if notes else {}),
    }


# --- shared -----------------------------------------------------------------------------------------------


def _load(place: Path) -> Deployed:
    from stillroom.models.bundle import load

    student = place / "export" / "student"
    return load(student if is_file(student / "config.json") else place)


def _fits(deployed: Deployed, source: Source) -> None:
    """See that a model takes the rows of a source, and knows its classes."""
    from stillroom.models.table_encode import check_columns
    from stillroom.pipeline.making import input_of
    from stillroom.tasks import check_names

    wanted, given = dict(deployed.config["input"]), input_of(source)
    if list(wanted["shape"]) != list(given["shape"]) or wanted["dtype"] != given["dtype"]:
        raise DataError(
            say(
                "This data does not fit the model",
                _rows(given),
                _rows(wanted),
                "Name the data it was trained for with --data.",
            )
        )
    check_columns(deployed.encode, source)
    check_names(deployed.classes, source.classes, "The model")


def _rows(input_: Mapping[str, Any]) -> str:
    shape = tuple(input_["shape"])
    return "texts" if input_["dtype"] == "text" else f"rows of shape {shape} and {input_['dtype']}"


def _data(text: str, model: Path | None) -> Source:
    """Open ``name`` or ``name:path``; without a name, the data of the run's own recipe."""
    from stillroom.data.table import open_source, options_of
    from stillroom.pipeline.recipes import open_data
    from stillroom.recipe import read_recipe

    if text:
        name, _, path = text.partition(":")
        if path and "path" not in options_of(name):
            raise DataError(say(f"Data '{name}' takes no path", f"'{path}'", f"--data {name}"))
        needed = options_of(name).get("path")
        if needed is not None and needed.default is needed.empty and not path:
            raise DataError(
                say(f"Data '{name}' needs a path", f"'{name}'", f"{name}:PATH, for example {name}:pictures/")
            )
        return open_source(name, **({"path": path} if path else {}))
    if model is not None and is_file(model / "recipe.yaml"):
        return open_data(read_recipe(model / "recipe.yaml").data)
    raise UserError(
        f"There is no data to use: {model} is not a run folder. Name it with --data, for example --data "
        "fashion-mnist-sample."
    )
