"""Pass on memory where answers ask for little of it: an LSTM of 64 units into one of 12.

    python examples/memory_distillation.py

The teacher has learnt to repeat the last ten numbers of a sequence, after every step. Two students are asked for one
number only: the mean of the last ten, at the end. One is shown these answers, the other the teacher's states too. Two
more are asked for everything the teacher answers: there the answers carry the memory, and the states are in the way.
Then all are asked how much of their past input a linear probe still reads from their state.
One seed and a few seconds: it shows how, not how much. For how much see benchmarks/memory.py.
"""

from __future__ import annotations

import tempfile
import time

import torch
from torch import Tensor, nn

from stillroom import ArraySource, Learner, Live, Training, as_source, capacity, fit, match, record

STEPS, BACK = 30, 10
torch.set_num_threads(1)


class Repeater(nn.Module):
    """Ten numbers after every step, from a memory of `hidden` units; every one of a size has the same start."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.memory, self.head = nn.LSTM(1, hidden, batch_first=True), nn.Linear(hidden, BACK)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.memory(inputs)[0])


def repeat(student_logits: Tensor, inputs: Tensor) -> Tensor:
    """What the teacher learns: the last ten inputs after every step that has as many behind it."""
    return (student_logits[:, BACK - 1 :] - inputs[..., 0].unfold(1, BACK, 1)).square().mean()


def answer(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """What the students are asked: the mean of the last ten, at the end."""
    return (student_logits[:, -1].mean(1) - teacher_logits[:, -1].mean(1)).square().mean()


def students_of(teacher: nn.Module, data: ArraySource) -> dict[str, nn.Module]:
    """Record the teacher once, and teach four students from the same start, in the same order."""
    memory = [
        match("memory", student="memory@h", teacher="memory@h"),  # the state after every step
        match("memory_cells", student="memory@c/5", teacher="memory@c/5", weight=0.5),  # the cells after every fifth
    ]
    taps = ["logits", "memory@state/5"]
    found: dict[str, nn.Module] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = record(Live(teacher, taps), data, folder, taps=taps)
        for name, asked in (("mean", answer), ("all ten", "mse_logits")):
            for title, objectives in ((name, [asked]), (f"{name}, memory", [asked, *memory])):
                found[title] = Repeater(12)
                settings = Training(steps=600, batch=64, lr=1e-2, clip=1.0)
                fit(Learner(found[title], objectives), data, store, settings)
    return found


def main() -> None:
    began = time.monotonic()
    torch.manual_seed(0)
    data = as_source(torch.rand(4000, STEPS, 1) * 2 - 1)
    asked = data.inputs[data.splits["test"]]
    teacher = Repeater(64)
    fit(Learner(teacher, [repeat]), data, None, Training(steps=800, batch=64, lr=5e-3, clip=1.0))

    networks = {"teacher": teacher, "random weights": Repeater(12), **students_of(teacher, data)}
    print(f"{'':<16} {'units':>5} {'remembers':>9}  half of the input, up to")
    for name, module in networks.items():
        held = capacity(module.eval(), "memory", asked, length=STEPS)
        print(f"{name:<16} {held.units:>5} {held.total:>9.1f}  {held.depth} steps back")
    print(f"{time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
