"""Every loss trains a small student from a small teacher: by hand, and as a line of a recipe."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.data.arrays import ArraySource
from stillroom.data.texts import TextSource
from stillroom.errors import LossError
from stillroom.learner import Learner
from stillroom.losses import LOSSES
from stillroom.models.encode import ImageEncode
from stillroom.models.text_encode import WordEncode
from stillroom.models.zoo import build
from stillroom.objectives import match, signature
from stillroom.recipe import read_recipe
from stillroom.record import record
from stillroom.settings import Training
from stillroom.store import Store
from stillroom.teachers import Live
from stillroom.train import train

ROWS, SHAPE, CLASSES, STEPS = 32, (1, 12, 12), 4, 3
TOKENS = {
    name
    for name, loss in LOSSES.items()
    if any(slot.kind and slot.kind.name == "tokens" for slot in signature(loss).slots)
}
MAPS = {
    name
    for name, loss in LOSSES.items()
    if any(slot.kind and slot.kind.name == "maps" for slot in signature(loss).slots)
}
STATES = {
    name
    for name, loss in LOSSES.items()
    if any(slot.kind and slot.kind.name == "states" for slot in signature(loss).slots)
}
EXPLANATIONS = {
    name
    for name, loss in LOSSES.items()
    if any(slot.kind and slot.kind.name == "explanations" for slot in signature(loss).slots)
}
WORDS = {
    name
    for name, loss in LOSSES.items()
    if any(slot.kind and slot.kind.name == "embeddings" for slot in signature(loss).slots)
}
BANKS = {name for name, loss in LOSSES.items() if signature(loss).sides("bank")}


class Remembers(nn.Module):
    """Rows of the image in time, its states shown as an output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory = nn.LSTM(SHAPE[2], width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        states = self.memory(inputs.squeeze(1))[0]
        return {"logits": self.head(states[:, -1]), "states": states[:, :, None, None], "tokens": states}


class Reads(nn.Module):
    """Rows of the image as tokens, the same to both models, with queries, keys and values of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows = nn.Flatten(1, 2)
        self.query, self.key, self.value = (nn.Linear(SHAPE[2], width) for _ in range(3))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.rows(inputs)
        looked = torch.softmax(self.query(rows) @ self.key(rows).transpose(1, 2), 2) @ self.value(rows)
        return self.head(looked.mean(1))


def seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def images() -> ArraySource:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 256, (ROWS, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.where(torch.arange(ROWS) % 3 == 2, -1, torch.arange(ROWS) % CLASSES)
    splits = {"train": torch.arange(ROWS), "validation": torch.arange(0), "test": torch.arange(0)}
    return ArraySource(inputs, labels, splits=splits, name="noise")


def models(name: str) -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    if name in STATES:
        return seeded(lambda: Remembers(8), 1), seeded(lambda: Remembers(12), 2)
    if name in TOKENS | WORDS:
        return seeded(lambda: Reads(8), 1), seeded(lambda: Reads(12), 2)
    student = seeded(lambda: build("cnn", shape=SHAPE, classes=CLASSES, width=4), 1)
    return student, seeded(lambda: build("resnet", shape=SHAPE, classes=CLASSES, width=8), 2)


def places(name: str) -> dict[str, object]:
    if name in STATES:
        theirs = "output[tokens]" if name in TOKENS else "output[states]"
        return {"student": "output[states]", "teacher": theirs}
    if name in TOKENS:
        return {"student": ["query", "key", "value"], "teacher": ["query", "key", "value"], "heads": 4}
    if name in WORDS:
        return {"student": "logits@gradient(wrt=rows)", "teacher": "logits@gradient(wrt=rows)"}
    if name in EXPLANATIONS:
        return {"student": "block3@gradcam", "teacher": "layer3@gradcam"}
    return {"student": "block3", "teacher": "layer3"} if name in MAPS else {}


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_trains_a_student_for_three_steps(name, tmp_path):
    data, encode = images(), ImageEncode([0.5], [0.3])
    student, network = models(name)
    learner = Learner(student, [match(name, **places(name))], encode=encode)
    told = list(dict.fromkeys(str(place.tap) for place in learner.teacher_places)) or ["logits"]
    teacher: Live | Store = Live(network, told, encode=encode)
    if name in BANKS:
        teacher = record(teacher, data, tmp_path, taps=told, fingerprints={"teacher": "t", "data": data.fingerprint})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    start = {key: value.clone() for key, value in student.named_parameters()}
    settings = Training(steps=STEPS, batch=16, lr=1e-2, schedule="constant")
    values = [float(step.losses["loss"].detach()) for step in train(learner, data, teacher, settings)]
    assert len(values) == STEPS and all(value == value and abs(value) < 1e6 for value in values)
    assert any(not torch.equal(start[key], value) for key, value in student.named_parameters()), "nothing was learnt"
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items()), "the teacher moved"


WORDS_OF_TEXTS = ["good", "bad", "film", "plot", "the", "and"]


def texts() -> TextSource:
    rows = [" ".join(WORDS_OF_TEXTS[(row * 7 + place) % 6] for place in range(1 + row % 5)) for row in range(24)]
    return TextSource(rows, [row % 2 for row in range(24)], classes=["worse", "better"])


def reader(seed: int, *, classes: int = 2, vectors: Tensor | None = None) -> nn.Module:
    """A network of texts; with ``vectors`` those word embeddings, frozen."""
    made = seeded(lambda: build("bigru", shape=(8,), classes=classes, embedding=6, hidden=5), seed)
    if vectors is not None:
        made.embed.weight.data.copy_(vectors)
    made.embed.weight.requires_grad_(vectors is None)
    return made


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
def test_gradients_at_word_embeddings_pass_from_one_reader_to_another(stored, tmp_path):
    data, encode, where = texts(), WordEncode(WORDS_OF_TEXTS), "logits@gradient(wrt=embed)"
    network = reader(2)
    with torch.no_grad():
        network.head.weight.mul_(20)
    learner = Learner(
        reader(1, vectors=network.embed.weight), [match("embedding_gradient", where, where)], encode=encode
    )
    taps = list(dict.fromkeys(str(place.tap) for place in learner.teacher_places))
    live = Live(network, taps, encode=encode)
    marks = {"teacher": "t", "data": data.fingerprint}
    teacher = record(live, data, tmp_path, taps=taps, fingerprints=marks) if stored else live
    batch = data.batch(torch.stack([torch.arange(24), torch.zeros(24, dtype=torch.long)], 1))
    shown, told = learner.reader(batch, teacher(batch)), teacher(batch)
    used = (torch.arange(5) < torch.tensor([1 + row % 5 for row in range(24)])[:, None])[..., None]
    gradients = [torch.where(used, one[where].detach(), 0.0) for one in (shown, told)]
    apart = F.normalize(gradients[0], dim=2) - F.normalize(gradients[1], dim=2)
    expected = float(apart.square().sum() / used.sum())
    learner.size(batch, told)
    assert float(learner(batch, told, step=0, steps=1)["loss"].detach()) == pytest.approx(expected, rel=1e-3)
    settings = Training(steps=60, batch=24, lr=1e-2, schedule="constant")
    values = [float(step.losses["loss"].detach()) for step in train(learner, data, teacher, settings)]
    assert values[-1] < 0.5 * values[0]


def test_gradients_at_other_word_embeddings_are_refused():
    where = "logits@gradient(wrt=embed)"
    learner = Learner(reader(1), [match("embedding_gradient", where, where)], encode=WordEncode(WORDS_OF_TEXTS))
    teacher = Live(reader(2), [where, "embed"], encode=WordEncode(WORDS_OF_TEXTS))
    with pytest.raises(LossError, match=r"one and the same point: got embeddings .* apart.*freeze them"):
        next(iter(train(learner, texts(), teacher, Training(steps=1, batch=8))))


def line(name: str) -> str:
    """The loss as a line of a recipe."""
    where = "".join(f", {side}: {place}" for side, place in places(name).items())
    return f"{{use: {name}{where}, weight: 0.01}}"


RECIPE = """
data:    {use: fashion-mnist-sample, labels: 1000}
teacher: {model: resnet, depth: 8, width: 8, stem: 2}
student: {model: cnn, width: 8}
objectives:
%s
train:   {steps: 100, batch: {labelled: 32, transfer: 32}}
seeds:   [0]
"""


def recipe(*names: str) -> str:
    return RECIPE % "\n".join(f"  - {line(name)}" for name in names)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in TOKENS | STATES | WORDS])
def test_a_recipe_may_name_the_loss_and_its_options(name):
    read = read_recipe(recipe("kd" if name != "kd" else "labels", name))
    assert read.objectives[-1].use == name
    assert set(read.objectives[-1].options) == set(signature(LOSSES[name]).options)


def test_all_losses_at_once_run_from_a_recipe(tmp_path, monkeypatch):
    path = tmp_path / "all.yaml"
    path.write_text(recipe(*(name for name in LOSSES if name not in TOKENS | STATES | WORDS)))  # a CNN has none
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["stillroom", "run", str(path), "--tiny", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(metrics["arms"]) == 1 and "alone" in metrics["models"]


def test_gradients_at_words_are_stored_as_long_as_their_text(tmp_path):
    """Recorded four texts at a time, of unlike lengths: padding is neither kept nor compared."""
    data, encode, where = texts(), WordEncode(WORDS_OF_TEXTS), "logits@gradient(wrt=embed)"
    live = Live(reader(2), [where, "embed"], encode=encode)
    store = record(live, data, tmp_path, batch=4, taps=[where, "embed"], fingerprints={"teacher": "t"})
    ids = torch.stack([torch.arange(24), torch.zeros(24, dtype=torch.long)], 1)
    told, shown = store({"id": ids}), live(data.batch(ids))
    lengths = torch.tensor([1 + row % 5 for row in range(24)])
    assert torch.equal(told[f"{where}.mask"].sum(1), lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(told[where][row, :length].float(), shown[where][row, :length], rtol=1e-2, atol=1e-6)
