"""A table of word vectors that turns texts into vectors with NumPy alone, and the folder it is kept in.

The words are cut as :mod:`stillroom.models.vocabulary` cuts them. ``embeddings.json`` is written last and holds the
checksum of ``vectors.npy``, so that a folder is whole or refused.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom import files
from stillroom.errors import ModelError, StillroomError, nearest, say
from stillroom.models.vocabulary import Unit, check_unit, split
from stillroom.paths import expand, is_file

VECTORS, ABOUT = "vectors.npy", "embeddings.json"
FORMAT = 1
_AT_ONCE = 1024  # texts, so that memory does not grow with their number


class StaticEmbeddings:
    """A vector for each piece of a vocabulary; a text is the mean of its pieces' vectors, of length 1.

    ``vectors`` is float32 (pieces, dimensions), its weights already in it; ``notes`` say how it was made (plain JSON).

    Raises:
        ModelError: as many vectors as pieces are needed, pieces must differ, and numbers must be finite.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        vectors: np.ndarray,
        *,
        unit: Unit = "word",
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.vocabulary = tuple(vocabulary)
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.unit = check_unit(unit)
        self.notes = dict(notes or {})
        self._rows = {piece: row for row, piece in enumerate(self.vocabulary)}
        shape = self.vectors.shape
        if len(shape) != 2 or shape[0] != len(self.vocabulary) or not all(shape):
            given = f"vectors {shape} for {len(self.vocabulary)} pieces"
            raise ModelError(say("Vectors and vocabulary do not belong together", given, "(pieces, dimensions)"))
        if len(self._rows) != len(self.vocabulary):
            given = f"{len(self.vocabulary)} pieces, {len(self._rows)} of them different"
            raise ModelError(say("This vocabulary cannot be used", given, "different pieces"))
        if not np.isfinite(self.vectors).all():
            raise ModelError(say("These vectors cannot be used", "NaN or infinity among them", "finite numbers"))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __repr__(self) -> str:
        return f"StaticEmbeddings({len(self)} {self.unit}s, {self.dimensions} dimensions)"

    @property
    def dimensions(self) -> int:
        """How many numbers a text becomes."""
        return int(self.vectors.shape[1])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of ``texts``, float32 (texts, dimensions), each of length 1.

        Pieces outside the vocabulary count for nothing; a text without a known piece is all zeros.

        Raises:
            ModelError: one text is given where a list of texts belongs.
        """
        if isinstance(texts, str):
            raise ModelError(say("Only lists of texts are encoded", "one text", "a list", "Write encode([text])."))
        found = np.zeros((len(texts), self.dimensions), np.float32)
        for start in range(0, len(texts), _AT_ONCE):
            self._fill(found[start : start + _AT_ONCE], texts[start : start + _AT_ONCE])
        return found

    def _fill(self, place: np.ndarray, texts: Sequence[str]) -> None:
        for row, text in enumerate(texts):
            known = [self._rows[piece] for piece in split(text, self.unit) if piece in self._rows]
            if known:
                mean = self.vectors[known].mean(axis=0)
                length = float(np.linalg.norm(mean))
                place[row] = mean / length if length else 0

    def similar(self, word: str, most: int = 10) -> list[tuple[str, float]]:
        """Return the pieces nearest to ``word`` and the cosine of the angle between, the nearest first.

        Raises:
            ModelError: the word is not in the vocabulary.
        """
        row = self._rows.get(word, self._rows.get(word.lower()))
        if row is None:
            close = nearest(word.lower(), self.vocabulary)
            do = f"Did you mean '{close}'?" if close else "Ask for a word of the texts that the vocabulary is from."
            raise ModelError(say("There is no vector for this word", f"'{word}'", "a word of the vocabulary", do))
        lengths = np.linalg.norm(self.vectors, axis=1)
        directions = self.vectors / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
        cosines = directions @ directions[row]
        order = np.argsort(-cosines, kind="stable")
        return [(self.vocabulary[other], float(cosines[other])) for other in order if other != row][:most]

    # --- the folder --------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Write ``vectors.npy`` and ``embeddings.json``; equal embeddings give equal bytes.

        Raises:
            UserError: the folder cannot be written.
        """
        stream = io.BytesIO()
        np.save(stream, self.vectors, allow_pickle=False)
        packed = stream.getvalue()
        about = {
            "format": FORMAT,
            "unit": self.unit,
            "dimensions": self.dimensions,
            "vocabulary": list(self.vocabulary),
            "notes": self.notes,
            "sha256": hashlib.sha256(packed).hexdigest(),
        }
        files.write_bytes(Path(folder) / VECTORS, packed)
        files.write_json(Path(folder) / ABOUT, about)

    @classmethod
    def load(cls, folder: Path | str) -> StaticEmbeddings:
        """Return the embeddings in ``folder``.

        Raises:
            ModelError: the folder does not hold embeddings, or they are damaged.
        """
        folder = expand(folder, "The folder of embeddings", ModelError)
        if not is_file(folder / ABOUT) or not is_file(folder / VECTORS):
            given = f"no {ABOUT} beside a {VECTORS}"
            raise ModelError(say(f"{folder} holds no embeddings", given, "a folder that save() wrote"))
        try:
            about = files.read_json(folder / ABOUT)
        except StillroomError as error:
            raise ModelError(str(error)) from error
        needed = {"format", "unit", "vocabulary", "sha256"}
        if not isinstance(about, dict) or not needed <= about.keys() or about["format"] != FORMAT:
            allowed = f"format {FORMAT} with {', '.join(sorted(needed))}"
            raise ModelError(say(f"{folder / ABOUT} does not describe embeddings", "other content", allowed))
        try:
            packed = (folder / VECTORS).read_bytes()
        except OSError as error:
            raise ModelError(say(f"{folder / VECTORS} cannot be read", str(error), "a file")) from error
        if hashlib.sha256(packed).hexdigest() != about["sha256"]:
            do = "A byte may have changed, or two were mixed: copy the folder again, or make it again."
            raise ModelError(say(f"{folder / VECTORS} is not the file of {ABOUT}", "another checksum", "both", do))
        try:
            vectors = np.load(io.BytesIO(packed), allow_pickle=False)
        except ValueError as error:
            raise ModelError(say(f"{folder / VECTORS} cannot be read", str(error), "an array of numbers")) from error
        return cls(about["vocabulary"], vectors, unit=about["unit"], notes=about.get("notes"))
