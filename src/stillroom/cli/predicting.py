"""What a model says of a person's own files: pictures, arrays, texts or tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.cli.reading import ARRAYS, LINES, PICTURES, rows_of, table_of, texts_of
from stillroom.data.text_tables import KINDS, kind_of
from stillroom.errors import DataError, UserError, say

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.models.bundle import Deployed

SHOWN = 80  # characters of a text beside its class
BATCH = 256

Answer = dict[str, Any]


def predictions(
    deployed: Deployed, places: Sequence[Path], *, column: str = "", encoding: str = "utf-8"
) -> tuple[list[Answer], list[str]]:
    """Return ``input``, ``class`` and ``probability`` of everything in ``places``, of texts their beginning too.

    The second list says in words what was not classified as it stands. ``column`` names the column of texts (else it
    is ``text``, or the only one), ``encoding`` what they are written in.

    Raises:
        UserError: a file does not fit the model, cannot be read, or holds nothing.
    """
    from stillroom.models.table_encode import TableEncode

    if deployed.reads_text:
        return _of_texts(deployed, *texts_of(places, column or None, encoding))
    if isinstance(deployed.encode, TableEncode):
        _no_column(column)
        names, rows, notes = table_of(places, deployed.encode.columns, encoding)
        return [{"input": name, **answer} for name, answer in zip(names, _answers(deployed, rows), strict=True)], notes
    found = next((place for place in places if kind_of(place) in (*KINDS, *LINES)), None)
    if found is not None:
        wanted = dict(deployed.config["input"])
        fits = f"{wanted['dtype']} rows of shape {tuple(wanted['shape'])}"
        allowed = f"pictures or arrays, {fits} ({', '.join((*PICTURES[:2], *ARRAYS))})"
        raise DataError(say("This model does not take texts", str(found), allowed))
    _no_column(column)
    names, rows = rows_of(places, dict(deployed.config["input"]))
    return [{"input": name, **answer} for name, answer in zip(names, _answers(deployed, rows), strict=True)], []


def _no_column(column: str) -> None:
    if column:
        raise UserError(f"--column names the column of texts, which this model does not take: got '{column}'. Omit it.")


def _of_texts(deployed: Deployed, names: Sequence[str], texts: Sequence[str]) -> tuple[list[Answer], list[str]]:
    from stillroom import utf8
    from stillroom.data.texts import LONGEST

    shown = [" ".join(text[: 4 * SHOWN].split())[:SHOWN] for text in texts]
    full = [number for number, text in enumerate(texts) if text.strip("\0 \t\r\n").strip()]
    kept = [texts[number].encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore") for number in full]
    found: dict[int, Answer] = {}
    beyond = 0
    for start in range(0, len(full), BATCH):
        rows = utf8.pack(kept[start : start + BATCH])
        found |= dict(zip(full[start : start + BATCH], _answers(deployed, rows), strict=True))
        cut = getattr(deployed.encode, "cut", None)
        beyond += 0 if cut is None else int(cut(rows).sum())
    nothing = {"class": None, "probability": None}
    answers = [
        {"input": name, "text": shown[number], **found.get(number, nothing)} for number, name in enumerate(names)
    ]
    over = sum(len(texts[number].encode("utf-8", "replace")) > LONGEST for number in full)
    return answers, _notes(len(texts) - len(full), over, beyond, getattr(deployed.encode, "longest", 0))


def _notes(empty: int, over: int, beyond: int, longest: int) -> list[str]:
    from stillroom.data.texts import LONGEST

    notes = []
    if empty:
        notes.append(f"{_count(empty)} empty: the class is left blank.")
    if over:
        notes.append(f"{_count(over)} over {LONGEST:,} bytes: the rest was not read.")
    if beyond:
        notes.append(
            f"{_count(beyond)} longer than the {longest} tokens this model reads: the beginning was classified."
        )
    return notes


def _count(count: int) -> str:
    return "1 text is" if count == 1 else f"{count:,} texts are"


def _answers(deployed: Deployed, rows: Tensor) -> list[Answer]:
    """Return the class and its probability for each raw row."""
    import torch

    found: list[Answer] = []
    with torch.no_grad():
        for part in torch.split(rows, BATCH):
            for row in deployed(part).softmax(1):
                top = int(row.argmax())
                name = deployed.classes[top] if deployed.classes else str(top)
                found.append({"class": name, "probability": round(float(row[top]), 4)})
    return found


def table(answers: Sequence[Answer]) -> bytes:
    """Return the answers as a CSV file; what was not classified is blank."""
    import csv
    import io

    text = io.StringIO()
    columns = [name for name in ("input", "text", "class", "probability") if name in answers[0]]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for answer in answers:
        probability = answer["probability"]
        row = answer | {"probability": None if probability is None else f"{probability:.4f}"}
        writer.writerow([row[name] for name in columns])
    return text.getvalue().encode("utf-8", "replace")
