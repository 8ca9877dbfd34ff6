"""What the commands evaluate --on and record --model do: features on other tasks, and features as a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import UserError, say
from stillroom.paths import is_file, is_folder

if TYPE_CHECKING:
    from stillroom.contracts import Source
    from stillroom.models.bundle import Deployed

    Load = Callable[[Path], Deployed]

LEARNT_FROM = 4000  # rows from which the order of the dimensions is learnt


def evaluate_on(model: Path, on: Sequence[str], rows: int, report: Path | None, as_json: bool, *, load: Load) -> None:
    """Try the features of a run's student (beside its teacher and controls) or of a bundle on other tasks."""
    from stillroom.cli import screen
    from stillroom.data.table import named
    from stillroom.generality import findings, summary
    from stillroom.pipeline.generality import generality_of_model, generality_of_run, open_tasks
    from stillroom.progress import waiting
    from stillroom.report import write_report

    names = [name.strip() for entry in on for name in entry.split(",") if name.strip()]
    with waiting("evaluating features on other tasks") as told:
        tasks = open_tasks([named(name) for name in names], rows)
        if is_file(model / "recipe.yaml"):
            result = generality_of_run(model, tasks, told)
        else:
            result = generality_of_model(load(model), tasks, told)
    if report is not None:
        found = findings(result)
        write_report(report, title=f"{model.name} on other tasks", verdict=summary(result), findings=found)
    if as_json:
        screen.show_json(result)
        return
    _show(result)
    screen.out.print(summary(result), markup=False)
    if report is not None:
        screen.out.print(f"Report: {report}", markup=False)


def _show(result: dict[str, Any]) -> None:
    from stillroom.cli.screen import show_table

    tasks = result["tasks"]
    rows = []
    for name, mean in result["mean"].items():
        held = [task["readers"][name] for task in tasks.values()]
        rows.append(
            [
                name,
                f"{held[0]['dimensions']:,}",
                *(f"{100 * one['linear']['mean']:.1f} %" for one in held),
                f"{100 * mean:.1f} %",
            ]
        )
    show_table(["features", "numbers", *tasks, "mean"], rows, "Linear probe on other tasks")


def record_features(
    model: Path, source: Source, out: Path, dimensions: int | None, dtype: str, quiet: bool, *, load: Load
) -> None:
    """Write a student's features of a whole source to a Parquet file."""
    from stillroom.cli import screen
    from stillroom.features import FeatureExtractor, write_features
    from stillroom.features.extractor import DTYPES
    from stillroom.progress import waiting

    if dtype not in DTYPES:
        raise UserError(say("Features have no such dtype", f"--dtype {dtype}", DTYPES))
    if is_folder(out):
        raise UserError(
            f"{out} is a folder: features are written to one file. Name it, for example --out "
            f"{out / 'features.parquet'}."
        )
    with waiting("recording features", quiet=quiet) as told:
        extractor = _extractor(model, load)
        if not hasattr(extractor, "center_") and (dimensions is not None or dtype in ("int8", "binary")):
            extractor = FeatureExtractor(
                extractor.model, extractor.tap, "pca" if dimensions is not None else extractor.head
            )
            extractor.fit((source, source.splits["train"][:LEARNT_FROM]))
        facts = write_features(
            extractor,
            source,
            out,
            dimensions=dimensions,
            dtype=dtype,  # type: ignore[arg-type]
            progress=told,
        )
    size = screen.bytes_text(facts["bytes"])
    screen.out.print(f"Wrote {facts['rows']:,} rows of {facts['columns']} x {dtype} to {out} ({size})", markup=False)


def _extractor(model: Path, load: Load) -> Any:
    from stillroom.features import FeatureExtractor
    from stillroom.features.extractor import FEATURES

    return FeatureExtractor.load(model) if is_file(model / FEATURES) else FeatureExtractor(load(model))
