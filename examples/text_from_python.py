"""Sentiment from Python: a TextCNN teaches a small BiLSTM, and onnxruntime and NumPy do the rest.

    python examples/text_from_python.py

The teacher learns from all 3,400 labels; the students see 500 of them, and one of them what the teacher says of every
text, plain and under three views in which words are hidden or left out. That one becomes a bundle with graphs, which
are asked without PyTorch. One seed and some seconds: it shows how, not how much; stillroom run
recipes/sentiment-en.yaml measures.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import stillroom
from stillroom import Learner, Live, Rows, Store, Training, evaluate, fit, match, record, words_for
from stillroom.contracts import Source
from stillroom.data.splits import LabelledSubset, few_labels, labels_of
from stillroom.models.bundle import Deployed
from stillroom.models.vocabulary import split
from stillroom.models.zoo import build
from stillroom.settings import Mixed

torch.set_num_threads(1)
torch.manual_seed(0)

SIZES = {"embedding": 50, "hidden": 32, "dropout": 0.4}


def students_of(store: Store, data: Source, words: stillroom.WordEncode) -> dict[str, nn.Module]:
    """Train one student twice, from the same start: on 500 labels alone, and with what the teacher said of all."""
    few = LabelledSubset(data, few_labels(labels_of(data), data.splits["train"], 500, 0))  # hides all other labels
    settings = Training(steps=400, batch=64, lr=2e-3, clip=5.0)
    ways = {
        "alone": ([match("labels")], None, settings, Rows(few.labelled)),
        "distilled": (
            [match("labels", weight=0.1), match("kd", temperature=2, weight=0.9)],
            store,
            settings.model_copy(update={"batch": Mixed(labelled=16, transfer=48)}),
            Rows.of(few),
        ),
    }
    found: dict[str, nn.Module] = {}
    for name, (objectives, teacher, how, rows) in ways.items():
        torch.manual_seed(1)
        found[name] = build("bilstm", shape=(words.size,), classes=2, **SIZES)
        fit(Learner(found[name], objectives, encode=words), few, teacher, how, rows=rows)
    return found


def export(student: nn.Module, words: stillroom.WordEncode, data: Source, folder: Path) -> None:
    """Write the bundle and both graphs; each graph is compared with the network on 64 validation texts."""
    shape = {"shape": [words.size], "input": {"dtype": "text", "shape": []}, "classes": list(data.classes or ())}
    rows = [torch.stack([data.splits[name][:64], torch.zeros(64).long()], 1) for name in ("train", "validation")]
    examples, check = (data.batch(ids) for ids in rows)
    config = {"model": {"use": "bilstm", "options": SIZES}, **shape}
    whole = Deployed(student.eval(), words)
    stillroom.export(
        whole, folder, examples=examples["inputs"], check=(check["inputs"], check["labels"]), config=config, int8=True
    )


def ask(folder: Path, text: str) -> str:
    """Classify a text by the exported graph: the rule that cuts words, NumPy and onnxruntime, no PyTorch."""
    import onnxruntime

    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers = {word: number for number, word in enumerate(about["encode"]["vocabulary"], 2)}  # 0 padding, 1 unknown
    pieces = split(text, about["encode"]["unit"])[: about["encode"]["longest"]]
    ids = np.array([[numbers.get(piece, 1) for piece in pieces] or [1]], np.int64)
    graph = onnxruntime.InferenceSession(folder / "model.int8.onnx", providers=["CPUExecutionProvider"])
    logits = graph.run(None, {"ids": ids, "mask": np.ones_like(ids, bool)})[0]
    return str(about["classes"][int(logits[0].argmax())])


def main() -> None:
    began = time.monotonic()
    data = stillroom.open_source("movie-reviews-sample", views=4)
    words = words_for(data, size=6000, longest=40)
    teacher = build("textcnn", shape=(words.size,), classes=2)
    fit(Learner(teacher, ["labels"], encode=words), data, None, Training(steps=500, batch=32, lr=1e-3))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        live = Live(teacher, ["logits"], encode=words)
        store = record(live, data, folder / "knowledge", taps=["logits"], views=4, order_by=data.lengths)
        networks = {"teacher": teacher, **students_of(store, data, words)}
        for name, module in networks.items():
            score = evaluate(module, data, encode=words)["accuracy"]
            print(f"{name:<10} {score:.1%} of the 2,000 test texts are right")
        export(networks["distilled"], words, data, folder / "student")
        for text in ("A slow and lovely film.", "A tedious waste of time."):
            print(f"{text:<25} {ask(folder / 'student', text)}")
    print(f"{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
