"""Write a commented recipe for a person's own file: texts, a table, a NumPy archive, or a folder of pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.contracts import UNLABELLED, Source
from stillroom.data.splits import labels_known
from stillroom.data.table import open_source
from stillroom.data.table_files import read_columns
from stillroom.errors import DataError, say
from stillroom.paths import is_file, is_folder

LABELS = ("label", "labels", "class", "target", "category", "y")
CATEGORIES = 50  # different values up to which a column may be the label
LEAST = 400  # steps that a teacher is trained for
LONG_TEXT = 30  # mean characters from which a column of texts is read as text and not as a category
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".npy", ".npz")


@dataclass(frozen=True)
class Proposal:
    """How a file is opened: the name of the source, its options, and the source itself."""

    use: str
    options: Mapping[str, Any]
    source: Source


def starter(path: Path, *, label: str | None = None, text: str | None = None) -> str:
    """Return a recipe, as YAML with comments, that distils a classifier on the data at ``path``.

    A folder is a folder of pictures, or of files of texts; a table with a column of long texts is read as texts; a
    NumPy archive whose examples have more than one axis is read as images. ``label`` and ``text`` name columns.

    Raises:
        DataError: the data cannot be read, or it is not clear which column holds the labels.
    """
    return _recipe(_propose(path, label, text))


def _propose(path: Path, label: str | None, text: str | None) -> Proposal:
    place = str(path.resolve())
    if is_folder(path):
        found = sorted(one.suffix.lower() for one in path.iterdir() if is_file(one))
        if not any(ending in found for ending in (".csv", ".tsv", ".jsonl")):
            return _opened("images", {"path": place})
        names = {"text": text, "label": label}
        return _opened("text", {"path": place, **{key: value for key, value in names.items() if value}})
    ending = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if ending not in TABLES:
        allowed = f"{', '.join(TABLES)} (the first three also as .gz), or a folder of pictures"
        raise DataError(say("No recipe can be written for this file", str(path), allowed))
    if ending == ".npz":
        images = _opened("npz", {"path": place}) if _holds_images(path) else None
        if images is not None:
            return images
    columns = read_columns(path)
    longest = text or _text_column(columns)
    label = label or _label_column(columns, longest, path)
    if longest is not None and ending in (".csv", ".tsv", ".jsonl"):
        return _opened("text", {"path": place, "text": longest, "label": label})
    return _opened("table", {"path": place, "label": label})


def _opened(use: str, options: dict[str, Any]) -> Proposal:
    return Proposal(use, options, open_source(use, **options))


def _holds_images(file: Path) -> bool:
    """Whether an archive's examples have more than one axis; only the header of one array is looked at."""
    import zipfile

    import numpy as np

    try:
        with zipfile.ZipFile(file) as archive:
            for name in ("x", "inputs", "x_train", "inputs_train"):
                if f"{name}.npy" in archive.namelist():
                    with archive.open(f"{name}.npy") as stream:
                        version = np.lib.format.read_magic(stream)
                        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                        shape = (read or np.lib.format.read_array_header_2_0)(stream)[0]
                    return len(shape) > 2
    except (OSError, ValueError, zipfile.BadZipFile):
        pass  # the source's own reader says what is wrong
    return False


def _text_column(columns: Mapping[str, Any]) -> str | None:
    """Return the column with the longest texts, if they are long and hardly ever the same."""
    best, length = None, float(LONG_TEXT)
    for name, values in columns.items():
        texts = [one for one in values.slice(0, 1000).to_pylist() if isinstance(one, str) and one]
        mean = sum(map(len, texts)) / len(texts) if texts else 0.0
        if mean > length and len(set(texts)) > len(texts) / 2:
            best, length = name, mean
    return best


def _label_column(columns: Mapping[str, Any], text: str | None, file: Path) -> str:
    by_name = {name.lower(): name for name in columns}
    for name in LABELS:
        if name in by_name:
            return by_name[name]
    others = [name for name in columns if name not in (text, "split")]
    if text is not None and len(others) == 1:
        return others[0]
    raise DataError(
        say(
            f"It is not clear which column of {file} holds the labels",
            "none that is called label",
            [f"{name} ({count} values)" for name, count in _counts(columns, others).items()] or others[:20],
            "Name it with --label COLUMN.",
        )
    )


def _counts(columns: Mapping[str, Any], names: list[str]) -> dict[str, int]:
    """Return how many values each column has that may hold labels: few, and more than one."""
    counts = {name: len(columns[name].unique()) for name in names}
    return {name: count for name, count in counts.items() if 1 < count <= CATEGORIES}


# --- the recipe ------------------------------------------------------------------------------------

MODELS = {
    "text": (
        "{model: textcnn, train: {epochs: EPOCHS, batch: 32, lr: 1.0e-3}}",
        "{model: textmlp}",
        "or a pretrained encoder from a folder: {hf: FOLDER, train: {epochs: 3, batch: 32, lr: 2.0e-4}}",
    ),
    "table": (
        "{model: mlp, hidden: [128, 64], dropout: 0.2, train: {epochs: EPOCHS, batch: 32, lr: 2.0e-3}}",
        "{model: mlp, hidden: [16]}",
        "",
    ),
    "images": (
        "{model: resnet, depth: 8, width: 32, stem: 2, train: {epochs: EPOCHS, batch: 32, lr: 3.0e-3}}",
        "{model: cnn, width: 16}",
        "",
    ),
}


def _recipe(found: Proposal) -> str:
    source = found.source
    kind = {"npz": "images"}.get(found.use, found.use)
    teacher, student, other = MODELS[kind]
    train = len(source.splits["train"])
    known = labels_known(source)
    labelled = train if known is None else int((known[source.splits["train"]] != UNLABELLED).sum())
    batch = 64 if labelled >= 640 else max(4, labelled // 40 * 4)
    epochs = max(6, math.ceil(32 * LEAST / max(1, labelled)))
    fewer = max(2 * len(source.classes or ()), labelled // 5)
    steps = min(1000, max(200, 10 * (2 * train // batch)))
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in source.splits.items())
    mixed = labelled < train
    lines = [
        "# stillroom run THIS_FILE        (look first: stillroom check THIS_FILE; stillroom run THIS_FILE --plan)",
        "#",
        f"# Rows: {sizes}. Classes: {_listed([str(one) for one in source.classes or ()])}.",
        "data:",
        *(f"  {key}: {json.dumps(value)}" for key, value in {"use": found.use, **found.options}.items()),
        f"  # labels: {fewer:<19}# distilling pays most where the student sees few labels: these, and the teacher's",
        "  #                            answers on all other rows; without this line it sees every label",
        "  # validation: 0.1          # share or number of rows that choose the learning rate and the stopping step",
        "  # test: 0.1                # share or number of rows that the report is about",
        f"teacher: {teacher.replace('EPOCHS', str(epochs))}",
        *([f"  # {other}"] if other else []),
        f"student: {student}            # `stillroom check` says how large both are",
        "objectives:",
        f"  - {{use: labels, weight: {0.3 if mixed else 0.5}}}",
        f"  - {{use: kd, temperature: 2, weight: {0.7 if mixed else 0.5}}}   # learn the teacher's probabilities",
        *([] if kind == "table" else ["record:  {views: 2}          # the teacher also answers on an augmented copy"]),
        f"train:   {{steps: {steps}, batch: {_batch(batch, mixed)}, lr: 3.0e-3}}",
        "seeds:   [0, 1, 2]           # five seeds or more for a claim",
        "# export:  {onnx: {int8: true}}   # also write the student with 8-bit weights",
    ]
    return "\n".join(lines) + "\n"


def _batch(rows: int, mixed: bool) -> str:
    return f"{{labelled: {rows}, transfer: 64}}" if mixed else str(rows)


def _listed(names: list[str]) -> str:
    shown = ", ".join(" ".join(name.split())[:40] for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
