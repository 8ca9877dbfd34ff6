"""Commands on models and data: evaluate, predict, export, data, version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.cli.help import Command
from stillroom.errors import DataError, UserError, say
from stillroom.paths import is_file

if TYPE_CHECKING:
    from stillroom.contracts import Source
    from stillroom.models.bundle import Deployed

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output")]
Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A bundle or a run folder, for example runs/images", show_default=False),
]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="Data: fashion-mnist-sample, images:PATH, npz:FILE, ... (default: the run's own)",
        show_default=False,
    ),
]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MORE...]", help="More sources for --on, or teachers for --teachers", show_default=False),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teachers",
        metavar="FOLDER",
        help="Rank these teachers for the student MODEL: bundles, run folders or stores",
        show_default=False,
    ),
]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="train, validation or test")]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="SOURCE",
        help="Evaluate its features on other tasks: digits, npz:FILE, ...",
        show_default=False,
    ),
]
ProbeRows = Annotated[
    int,
    typer.Option("--rows", metavar="NUMBER", min=50, help="With --on: labelled rows to train each probe on"),
]
ReportFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="With --on: an HTML report to write", show_default=False),
]
Attack = Annotated[
    str,
    typer.Option(
        "--attack",
        metavar="SIZE",
        help="Measure accuracy under a PGD attack of this size too: 8/255 of the inputs' range",
        show_default=False,
    ),
]

data_app = typer.Typer(
    help="List the sources of data, and show what is in one.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: stillroom data show fashion-mnist-sample",
)


def evaluate(
    model: Model,
    more: More = None,
    data: DataName = "",
    split: Split = "test",
    on: On = None,
    rows: ProbeRows = 2000,
    report: ReportFile = None,
    attack: Attack = "",
    teachers: Teachers = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model, its features, or teachers for it.

    By default the model is measured on one split. With --on, linear probes measure its features on other tasks. With
    --teachers, MODEL is a student (a folder, or a name such as cnn:width=8) and the teachers are ranked for it.

    Example: stillroom evaluate runs/images --data fashion-mnist-sample

    Example: stillroom evaluate cnn:width=8 --teachers runs/a/teacher runs/b/knowledge --data digits
    """
    from stillroom.cli.attacking import attacked, size_of
    from stillroom.cli.features import evaluate_on
    from stillroom.cli.screen import out, show_json
    from stillroom.cli.teachers import evaluate_teachers
    from stillroom.evaluate import evaluate as measure
    from stillroom.progress import waiting

    size = size_of(attack) if attack else None
    if teachers:
        if on or attack or report is not None:
            raise UserError("--teachers cannot be combined with --on, --attack or --out: got both. Leave one out.")
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
    with waiting(f"evaluating {model} on {split}"):
        deployed = _load(model)
        source = _data(data, model, deployed.config.get("input"))
        _fits(deployed, source)
        found = measure(deployed, source, split=split)
    facts: dict[str, Any] = {
        "model": str(model),
        "data": getattr(source, "name", data),
        "split": split,
        "rows": len(source.splits[split]),
        **found,
        **({} if size is None else attacked(deployed, source, split, size)),
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
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, folders of them, .npy/.npz arrays, files of texts, tables",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The CSV file to write")] = Path("predictions.csv"),
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="The column that holds the texts", show_default=False)
    ] = "",
    encoding: Annotated[
        str, typer.Option("--encoding", metavar="NAME", help="Character encoding of texts and tables")
    ] = "utf-8",
    every: Annotated[bool, typer.Option("--all", help="Write the probability of every class too")] = False,
    as_json: Json = False,
) -> None:
    """Classify your own files and write a CSV file.

    Pictures, arrays, texts and tables are read; each row of the CSV file has a class and its probability.

    Texts are the rows of a .csv, .tsv or .jsonl file, or the lines of a .txt file. The columns of a table (.csv, .tsv,
    .jsonl, .parquet) are found by their names. Your own columns stand beside the answers. What cannot be read is listed
    at the end, and the rest is answered.

    Example: stillroom predict runs/images photos/ --out predictions.csv
    """
    from stillroom.cli.predicting import predictions, table
    from stillroom.cli.screen import out as screen
    from stillroom.cli.screen import show_json
    from stillroom.files import write_bytes
    from stillroom.progress import waiting

    with waiting("classifying"):
        usual = _text_column(model)
        found = predictions(_load(model), inputs, column=column, encoding=encoding, every=every, usual=usual)
    write_bytes(out, table(found.answers))
    if as_json:
        facts = {"file": str(out), "rows": len(found.answers), "notes": found.notes, "predictions": found.answers}
        show_json(facts | ({"bad": found.bad} if found.bad else {}))
    else:
        many = "s" * (len(found.answers) != 1)
        screen.print(f"Wrote {len(found.answers):,} prediction{many} to {out}", markup=False)
        for note in found.notes:
            screen.print(note, markup=False)
    if found.bad:
        raise DataError(f"{found.bad}\nThe answers to the others are in {out}.")


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write")] = Path("exported"),
    data: DataName = "",
    int8: Annotated[bool, typer.Option("--int8", help="Write an int8 (quantised) ONNX graph too")] = False,
    as_json: Json = False,
) -> None:
    """Export a model to safetensors and ONNX, checked on real rows.

    Example: stillroom export runs/images --int8 --out exported
    """
    from stillroom.cli.screen import bytes_text, show_json, show_table
    from stillroom.evaluate import plain_ids
    from stillroom.export import export as export_model
    from stillroom.progress import waiting

    with waiting(f"exporting {model}") as told:
        deployed = _load(model)
        source = _data(data, model, deployed.config.get("input"))
        _fits(deployed, source)
        train, test = source.splits["train"][:256], source.batch(plain_ids(source.splits["test"][:1000]))
        facts = export_model(
            deployed,
            out,
            examples=source.batch(plain_ids(train))["inputs"],
            check=(test["inputs"], test.get("labels")),
            int8=int8,
            progress=told,
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
    """Print the versions of Stillroom and its dependencies.

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


@data_app.command(name="list", cls=Command)
def list_(as_json: Json = False) -> None:
    """List the sources of data, with their options and defaults.

    Example: stillroom data list
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.data.table import MEANINGS, SOURCES, written_options

    found = {name: written_options(name) for name in SOURCES}
    if as_json:
        show_json({name: list(options) for name, options in found.items()})
        return
    for name, options in found.items():
        shown = [option if default is None else f"{option}={default}" for option, default in options.items()]
        out.print(f"{name:<22} {', '.join(shown)}".rstrip(), markup=False)
    out.print("")
    for option, meaning in MEANINGS.items():
        out.print(f"{option:<12} {meaning}", markup=False)


@data_app.command(cls=Command)
def show(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Data: fashion-mnist-sample, npz:FILE, images:PATH,size=64", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show the rows, splits, classes and shape of a source.

    Options of the source follow its name, after commas.

    Example: stillroom data show images:photos,size=64
    """
    from stillroom.cli.screen import out, show_json
    from stillroom.pipeline.making import input_of
    from stillroom.progress import waiting

    with waiting(f"opening {source}"):
        opened = _data(source, None)
    facts: dict[str, Any] = {
        "name": getattr(opened, "name", source),
        "rows": len(opened),
        "classes": list(opened.classes or ()),
        "input": input_of(opened),
        "splits": {name: len(rows) for name, rows in opened.splits.items()},
        **_of_texts(opened),
        **_of_tables(opened),
        **({"notes": list(notes)} if (notes := getattr(opened, "notes", ())) else {}),
    }
    if as_json:
        show_json(facts)
        return
    for key, value in facts.items():
        listed = "; " if key == "notes" else ", "
        out.print(f"{key:<8} {listed.join(map(str, value)) if isinstance(value, list) else value}", markup=False)


def _of_texts(source: Source) -> dict[str, Any]:
    """Return what else there is to say of texts: the longest, one of them, and what was left out or cut."""
    if getattr(source, "modality", "") != "text":
        return {}
    train = source.splits["train"]
    lengths = source.lengths(train)  # type: ignore[attr-defined]
    return {
        "bytes": f"{int(lengths.median()):,} in the middle, {int(lengths.max()):,} at most",
        "example": " ".join(str(source.show(int(train[0]))).split())[:80],
    }


def _of_tables(source: Source) -> dict[str, Any]:
    """Return what else there is to say of a table: its columns, a row of it, and what was filled or left out."""
    if getattr(source, "modality", "") != "table":
        return {}
    texts = source.categories  # type: ignore[attr-defined]
    kinds = [
        f"{name} {f'categorical ({len(texts[name])})' if name in texts else 'numeric'}"
        for name in source.names  # type: ignore[attr-defined]
    ]
    return {
        "columns": list(source.names),  # type: ignore[attr-defined]
        "kinds": kinds,
        "example": str(source.show(int(source.splits["train"][0]))),
    }


# --- shared -----------------------------------------------------------------------------------------------


def _text_column(model: Path) -> str:
    """Return the column of texts that a run was trained on; "text" where there is no recipe or it names none."""
    from stillroom.recipe import read_recipe

    if not is_file(model / "recipe.yaml"):
        return "text"
    return str(read_recipe(model / "recipe.yaml").data.options.get("text", "text"))


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


def _data(text: str, model: Path | None, wanted: Mapping[str, Any] | None = None) -> Source:
    """Open ``name``, ``name:path`` or ``name:path,key=value``; without a name, the data of the run's own recipe.

    Pictures are read in the size that a model takes (``wanted``, the input of its bundle), unless one is given.
    """
    from stillroom.data.table import named, open_source
    from stillroom.pipeline.recipes import open_data
    from stillroom.recipe import read_recipe

    if text:
        name, options = named(text)
        shape = list((wanted or {}).get("shape", ()))
        if name == "images" and len(shape) == 3 and shape[1] == shape[2]:  # as the model takes them
            options = {"size": shape[1], "channels": shape[0]} | options
        return open_source(name, **options)
    if model is not None and is_file(model / "recipe.yaml"):
        return open_data(read_recipe(model / "recipe.yaml").data)
    raise UserError(
        f"There is no data to use: {model} is not a run folder. Name it with --data, for example --data "
        "fashion-mnist-sample."
    )
