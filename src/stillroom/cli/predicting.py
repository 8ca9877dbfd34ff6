"""What a model says of a person's own files: pictures, arrays, texts or tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillroom.cli.reading import ARRAYS, LINES, PICTURES, Found, rows_of, table_of, texts_of, unread
from stillroom.data.text_tables import KINDS, kind_of
from stillroom.errors import DataError, UserError, say

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.models.bundle import Deployed

BATCH = 256
OWN = ("input", "row", "class", "probability", "probabilities")  # what an answer says beside a person's columns
OF = "probability of "

Answer = dict[str, Any]


class Predictions(NamedTuple):
    """Answers, what is odd about them in words, and what there is to say of files that could not be read, or ""."""

    answers: list[Answer]
    notes: list[str]
    bad: str


def predictions(
    deployed: Deployed,
    places: Sequence[Path],
    *,
    column: str = "",
    encoding: str = "utf-8",
    every: bool = False,
    usual: str = "text",
) -> Predictions:
    """Return what a model says of everything in ``places``.

    An answer holds ``input`` (the file), ``row`` (counted from 1 in a table, an array or a file of texts), the person's
    own columns, ``class`` and ``probability``; with ``every`` also ``probabilities``, by class. A column of the
    person's that is called like one of ours is given back as "... (given)". ``column`` names the column of texts (else
    it is the only one, ``usual``, or ``text``), ``encoding`` what they are written in.

    Raises:
        UserError: a file does not fit the model, or none can be read.
    """
    import torch

    from stillroom.models.table_encode import TableEncode

    if deployed.reads_text:
        return _of_texts(deployed, texts_of(places, column or None, encoding, usual), every)
    if isinstance(deployed.encode, TableEncode):
        _no_column(column)
        found = table_of(places, deployed.encode.columns, encoding)
    else:
        wanted = dict(deployed.config["input"])
        text = next((place for place in places if kind_of(place) in (*KINDS, *LINES)), None)
        if text is not None:
            fits = f"{wanted['dtype']} rows of shape {tuple(wanted['shape'])}"
            allowed = f"pictures or arrays, {fits} ({', '.join((*PICTURES[:2], *ARRAYS))})"
            raise DataError(say("This model does not take texts", str(text), allowed))
        _no_column(column)
        found = rows_of(places, wanted)
    said = _said(deployed, torch.cat(found.rows), every)
    answers = [{**_place(shown), **answer} for shown, answer in zip(found.shown, said, strict=True)]
    return Predictions(answers, found.notes, unread(found) if found.bad else "")


def _no_column(column: str) -> None:
    if column:
        raise UserError(f"--column names the column of texts, which this model does not take: got '{column}'. Omit it.")


def _place(shown: Mapping[str, Any]) -> Answer:
    """Return where a row stands, and the person's own columns."""
    place = {} if shown["row"] is None else {"row": shown["row"]}
    own = {
        f"{name} (given)" if name in OWN or name.startswith(OF) else name: cell
        for name, cell in shown["columns"].items()
    }
    return {"input": shown["input"], **place, **own}


def _of_texts(deployed: Deployed, found: Found, every: bool) -> Predictions:
    from stillroom import utf8
    from stillroom.data.texts import LONGEST

    texts: list[str] = found.rows
    full = [number for number, text in enumerate(texts) if text.strip("\0 \t\r\n").strip()]
    kept = [texts[number].encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore") for number in full]
    said: dict[int, Answer] = {}
    beyond = 0
    for start in range(0, len(full), BATCH):
        rows = utf8.pack(kept[start : start + BATCH])
        said |= dict(zip(full[start : start + BATCH], _said(deployed, rows, every), strict=True))
        cut = getattr(deployed.encode, "cut", None)
        beyond += 0 if cut is None else int(cut(rows).sum())
    nothing: Answer = {"class": None, "probability": None} | ({"probabilities": {}} if every else {})
    answers = [{**_place(shown), **said.get(number, nothing)} for number, shown in enumerate(found.shown)]
    over = sum(len(texts[number].encode("utf-8", "replace")) > LONGEST for number in full)
    notes = _notes(len(texts) - len(full), over, beyond, getattr(deployed.encode, "longest", 0))
    return Predictions(answers, [*found.notes, *notes], unread(found) if found.bad else "")


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


def _said(deployed: Deployed, rows: Tensor, every: bool) -> list[Answer]:
    """Return the class and its probability for each raw row, and with ``every`` the probability of each class."""
    import torch

    found: list[Answer] = []
    with torch.no_grad():
        for part in torch.split(rows, BATCH):
            for row in deployed(part).softmax(1):
                top = int(row.argmax())
                names = deployed.classes or [str(number) for number in range(len(row))]
                answer: Answer = {"class": names[top], "probability": round(float(row[top]), 4)}
                if every:
                    shares = (round(one, 4) for one in row.tolist())
                    answer["probabilities"] = dict(zip(names, shares, strict=True))
                found.append(answer)
    return found


def table(answers: Sequence[Answer]) -> bytes:
    """Return the answers as a CSV file: the person's columns, class and probabilities; what is unknown is blank."""
    from stillroom.data.csv_files import csv_bytes

    given = dict.fromkeys(name for answer in answers for name in answer if name not in OWN)
    classes = dict.fromkeys(name for answer in answers for name in answer.get("probabilities", ()))
    row = ["row"] * any("row" in answer for answer in answers)
    columns = ["input", *row, *given, "class", "probability", *(OF + name for name in classes)]
    return csv_bytes(columns, (_cells(answer, [*row, *given], list(classes)) for answer in answers))


def _cells(answer: Answer, given: Sequence[str], classes: Sequence[str]) -> list[object]:
    shares = answer.get("probabilities", {})
    return [
        answer["input"],
        *(answer.get(name) for name in given),
        answer["class"],
        _digits(answer["probability"]),
        *(_digits(shares.get(name)) for name in classes),
    ]


def _digits(probability: float | None) -> str | None:
    return None if probability is None else f"{probability:.4f}"
