"""What a model is asked for: plain examples, in evaluation mode, the teacher on the same rows in the same order."""

from __future__ import annotations

import torch
from torch import nn

from stillroom.data.arrays import ArraySource
from stillroom.evaluate import answer, evaluate, plain_ids

ROWS = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
SPLITS = {"train": torch.tensor([0, 1]), "validation": torch.tensor([2]), "test": torch.tensor([5, 3, 4])}


def source() -> ArraySource:
    return ArraySource(ROWS, torch.tensor([0, 1, 2, 0, 1, 2]), splits=SPLITS, classes=["a", "b", "c"])


class Halves(nn.Module):
    """Right in evaluation mode, and one class beside in training mode; a part of it is frozen."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Dropout(0.5).eval()
        self.own = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.own * self.frozen(inputs.roll(1, 1) if self.training else inputs)


def test_a_model_answers_in_evaluation_mode_and_gets_its_modes_back():
    model = Halves()
    logits, labels = answer(model, source(), SPLITS["test"])
    assert torch.equal(logits, torch.eye(3)[[2, 0, 1]]) and labels.tolist() == [2, 0, 1]
    assert model.training and not model.frozen.training


def test_the_plain_view_is_asked_for():
    assert plain_ids(torch.tensor([5, 3])).tolist() == [[5, 0], [3, 0]]


def test_the_teacher_answers_the_same_rows_in_the_same_order():
    """Of rows 5, 3, 4 the teacher answers the classes 2, 0, 0: as the model in two of three."""
    told = torch.tensor([0, 0, 0, 0, 0, 2])
    teacher = lambda batch: {"logits": torch.eye(3)[told[batch["id"][:, 0]]]}  # noqa: E731
    assert evaluate(Halves(), source(), teacher=teacher)["agreement"] == 2 / 3
