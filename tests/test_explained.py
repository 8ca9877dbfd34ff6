"""Five thousand texts through every panel that asks a model of texts: within the time, and told where it is short."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stillroom.data.texts import TextSource
from stillroom.mining import Budget, Subject
from stillroom.mining.attribution import attribution
from stillroom.mining.layers import layers
from stillroom.mining.rules import rules
from stillroom.mining.students import students
from stillroom.models.text_encode import words_for
from stillroom.models.zoo import build
from stillroom.report.figures import draw, names
from stillroom.report.svg import slots

ROWS, TAUGHT = 5000, 1200
WORDS = [f"{first}{second}" for first in "b d f g k l m n p r s t".split() for second in "a e i o u".split()]


@pytest.fixture(scope="module")
def mined() -> tuple[Subject, dict[str, list[Subject]]]:
    """A small GRU that knows one word in texts of three to forty, and its students."""
    torch.set_num_threads(1)
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, ROWS)
    texts = []
    for label in labels:
        row = [*chance.choice(WORDS, chance.integers(3, 40)), *["trigger"] * int(label)]
        texts.append(" ".join(chance.permutation(row)))
    data = TextSource(texts, labels, classes=["without", "with"])
    encode = words_for(data, longest=48)
    made = [taught(build("bigru", shape=(encode.size,), classes=2, embedding=12, hidden=12), encode, data)]
    made += [build("textmlp", shape=(encode.size,), classes=2, embedding=8, hidden=8).eval() for _ in range(2)]
    teacher, kd, alone = (Subject(data, one, encode) for one in made)
    return teacher, {"kd": [kd], "alone": [alone]}


def taught(model: nn.Module, encode: nn.Module, data: TextSource) -> nn.Module:
    train = data.splits["train"][:TAUGHT]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for start in range(0, 3 * TAUGHT, 60):
        part = train[(torch.arange(60) + start) % TAUGHT]
        batch = data.batch(torch.stack([part, part * 0], 1))
        loss = functional.cross_entropy(model(**encode(batch["inputs"])), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_every_panel_keeps_to_its_time_and_says_what_was_planted(mined):
    teacher, pupils = mined
    assert float((teacher.logits("test").argmax(1) == teacher.labels(teacher.examples("test"))).double().mean()) > 0.97
    told = {}
    for panel, given in ((rules, ()), (attribution, ()), (layers, ()), (students, (pupils,))):
        began = time.monotonic()
        found = panel(teacher, Budget(20.0), *given)
        assert time.monotonic() - began < 22, panel.__name__
        told[found.name] = found
        for finding in found.findings:
            assert finding.sentence.endswith(".") and finding.control
            assert draw(finding.figure, slots(names(finding.figure))) or not finding.figure
            assert "tensor" not in finding.sentence and "b'" not in finding.sentence and "\\x" not in finding.sentence
    assert told["attribution"].numbers["stands_out"] == "trigger"
    assert told["rules"].numbers["rules"] == 2 and '"trigger"' in told["rules"].findings[0].figure["text"]
    assert told["layers"].numbers["layers"]["head"]["probe"] > 0.95
    assert "gradient_cosine" in told["students"].numbers["arms"]["kd"]
    assert "cosine of attributions" in str(draw(told["students"].findings[0].figure, {}))


class Slow(nn.Module):
    """The same, but every text takes its time."""

    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(ids))
        return self.model(ids, mask)


def test_where_there_is_little_time_less_is_asked_and_the_notes_say_so(mined):
    teacher, pupils = mined
    few = {"rows": 300}
    slow = Subject(teacher.data, Slow(teacher.opened, 0.001), teacher.encode, **few)
    slow.keep({split: {"logits": teacher.logits(split)[:300]} for split in ("train", "validation", "test")})
    pupils = {name: [Subject(one.data, one.opened, one.encode, **few) for one in each] for name, each in pupils.items()}
    slow.keep({"test": {"logits": slow.answer(slow.inputs(slow.examples("test")))}})
    for panel, given, said in (
        (rules, (), "queries: more would not fit the time"),
        (attribution, (), "texts were explained, to keep to the time"),
        (layers, (), "rows were looked at"),
        (students, (pupils,), "layers and reasons were compared on"),
    ):
        began = time.monotonic()
        found = panel(slow, Budget(1.0), *given)
        assert time.monotonic() - began < 5, panel.__name__
        assert any(said in note for note in found.notes), (panel.__name__, found.notes)
        assert all(finding.sentence for finding in found.findings)
