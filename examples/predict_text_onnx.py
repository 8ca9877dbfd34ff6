"""Classify texts by an exported bundle without PyTorch: onnxruntime runs the graph, config.json says the rest.

    stillroom run sentiment-en
    python examples/predict_text_onnx.py runs/sentiment-en/export/student "a fine film" "dull from start to end"

With a tokenizer of words or characters NumPy is all that is needed beside it; one of Hugging Face needs `tokenizers`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from stillroom.models.vocabulary import split


def tokens(encode: dict, texts: list[str]) -> list[list[int]]:
    """Return the token numbers of each text, as the bundle's tokenizer gives them."""
    if encode["kind"] == "hugging-face":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(encode["tokenizer"])
        tokenizer.enable_truncation(encode["longest"])
        return [tokenizer.encode(text).ids for text in texts]
    numbers = {piece: number for number, piece in enumerate(encode["vocabulary"], 2)}  # 0 pads, 1 is unknown
    cut = [split(text, encode["unit"], encode["longest"]) for text in texts]
    return [[numbers.get(piece, 1) for piece in pieces] or [1] for pieces in cut]


def main(folder: Path, texts: list[str], graph: str = "model.onnx") -> None:
    """Print the class of each text and its probability."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = tokens(config["encode"], texts)
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, config["encode"].get("padding", 0), np.int64)
    ids[mask] = np.concatenate(rows)
    session = onnxruntime.InferenceSession(str(folder / graph), providers=["CPUExecutionProvider"])
    given = {"ids": ids, "mask": mask, "input_ids": ids, "attention_mask": mask.astype(np.int64)}
    logits = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})[0]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    for text, row in zip(texts, odds / odds.sum(1, keepdims=True), strict=True):
        print(f"{config['classes'][row.argmax()]:<12} {row.max():.4f}  {text[:80]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
