"""A student and its objectives in one module: one forward, one backward, in our loop or in anybody's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import LossError
from stillroom.learner import Learner, taken
from stillroom.objectives import match
from stillroom.teachers import Live

ROWS = 8


def network(hidden: int = 6, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, 3)
        )


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    inputs = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))
    ids = torch.stack([torch.arange(ROWS), torch.zeros(ROWS, dtype=torch.long)], 1)
    return {"id": ids, "inputs": inputs, "labels": torch.arange(ROWS) % 3}


BATCH = batch_of()


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if value.grad is None else value.grad.clone() for name, value in module.named_parameters()}


def test_the_loss_is_the_weighted_sum_of_named_terms():
    learner = Learner(
        network().eval(), [match("labels", weight=0.1), match("kd", weight=0.9), match("l1", weight=1e-3)]
    )
    losses = learner(BATCH, Live(network(seed=1))(BATCH))
    assert list(losses) == ["labels", "kd", "l1", "loss"]
    expected = 0.1 * losses["labels"] + 0.9 * losses["kd"] + 1e-3 * losses["l1"]
    assert torch.allclose(losses["loss"], expected) and learner.weights() == {"labels": 0.1, "kd": 0.9, "l1": 1e-3}


def test_a_weight_of_nought_multiplies_and_does_not_skip():
    learner = Learner(network(), ["labels", match("hint", "features", "features", weight=0)])
    teacher = Live(network(9, seed=1), ["features"])(BATCH)
    learner.size(BATCH, teacher)
    losses = learner(BATCH, teacher)
    assert losses["hint"] > 0, "it is computed and shown"
    losses["loss"].backward()
    found = gradients(learner)
    assert found["objectives.1.connectors.0.weight"] is not None and not found["objectives.1.connectors.0.weight"].any()
    learner.zero_grad()
    Learner(learner.student, ["labels"])
    assert all(value is not None for value in found.values()), "several processes wait for every gradient"


def test_a_ramp_and_a_rest():
    learner = Learner(network().eval(), ["labels", match("kd", weight={"from": 1, "to": 0, "until": 0.5}, every=2)])
    teacher = Live(network(seed=1))(BATCH)
    parts = [learner(BATCH, teacher, step=step, steps=8) for step in range(8)]
    assert [("kd" in part) for part in parts] == [True, False] * 4
    for step, weight in ((0, 1.0), (2, 0.5), (4, 0.0)):
        assert learner.weights(step, 8) == {"labels": 1.0, "kd": weight}
        assert torch.allclose(parts[step]["loss"], parts[step]["labels"] + weight * parts[step]["kd"])
    assert torch.equal(parts[1]["loss"], parts[1]["labels"]) and learner.weights(1, 8)["kd"] == 0


def test_a_resting_objective_is_not_read_but_keeps_a_gradient():
    reads = []
    student = network()
    student[0].register_forward_hook(lambda *_: reads.append("forward"))
    learner = Learner(student, ["labels", match("hint", "0", "0", every=2)])
    teacher = Live(network(9, seed=1), ["0"])(BATCH)
    learner.size(BATCH, teacher)
    learner(BATCH, teacher, step=1)["loss"].backward()
    found = gradients(learner)
    assert not found["objectives.1.connectors.0.weight"].any()
    shown, all_shown = (learner._shown(BATCH, teacher, step)[1.0][0] for step in (1, 2))
    assert list(shown) == ["logits"] and set(all_shown) == {"logits", "0"}


@pytest.mark.parametrize("objective", ["labels", "hint"])
def test_a_step_at_which_nothing_is_computed_still_goes_backward(objective):
    learner = Learner(network(), [match(objective, every=2)])
    teacher = Live(network(9, seed=1), ["features"])(BATCH)
    learner.size(BATCH, teacher)
    losses = learner(BATCH, teacher, step=1)
    assert list(losses) == ["loss"] and losses["loss"] == 0
    losses["loss"].backward()
    assert all(value is not None and not value.any() for value in gradients(learner).values())


def test_names_are_ones_own():
    with pytest.raises(LossError, match=r"names of their own: got \['kd'\] twice.*name="):
        Learner(network(), ["kd", match("kd", temperature=2)])
    with pytest.raises(LossError, match=r"got \['loss'\] \(it is the sum\)"):
        Learner(network(), [match("kd", name="loss")])
    with pytest.raises(LossError, match="at least one objective"):
        Learner(network(), [])
    learner = Learner(network(), ["kd", match("kd", temperature=2, name="soft")])
    assert list(learner(BATCH, Live(network(seed=1))(BATCH))) == ["kd", "soft", "loss"]


def test_what_a_teacher_must_show():
    learner = Learner(
        network(), ["kd", match("hint", "0", "big/0"), match("hint", "logits@gradient", "logits@gradient", name="g")]
    )
    assert [one.key for one in learner.teacher_places] == ["logits", "big/0", "logits@gradient"]
    gradient = Learner(network(), [match("hint", "logits@gradient", "map")])
    assert [one.key for one in gradient.teacher_places] == ["map", "logits"], "the student follows the teacher's class"
    assert Learner(network(), ["labels", "l2"]).teacher_places == [] and Learner(network(), ["bank"]).banks == [
        "features"
    ]


def test_connectors_are_trained_with_the_student_and_are_no_part_of_it():
    student = network()
    learner = Learner(student, [match("hint", "0", "0")])
    teacher = Live(network(9, seed=1), ["0"])(BATCH)
    learner.size(BATCH, teacher)
    assert "objectives.0.connectors.0.weight" in dict(learner.named_parameters())
    assert set(dict(student.named_parameters())) == set(dict(network().named_parameters()))


def test_sizing_moves_nothing():
    learner = Learner(network().train(), [match("hint", "features", "features")])
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    state = torch.random.get_rng_state()
    learner.size(BATCH, Live(network(9, seed=1), ["features"])(BATCH))
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state) and learner.student.training
    assert all(value.grad is None for value in learner.parameters())


def test_shapes_that_cannot_meet_are_both_named():
    learner = Learner(network(), [match("hint", "0", "0", connector="none")])
    with pytest.raises(LossError, match=r"'hint' compares the student's '0' \(8, 6\) with the teacher's '0' \(8, 9\)"):
        learner.size(BATCH, Live(network(9), ["0"])(BATCH))


def test_bfloat16_reads_narrow_and_computes_wide():
    learner = Learner(network().eval(), ["labels", "kd"], precision="bf16")
    exact = Learner(learner.student, ["labels", "kd"])
    teacher = Live(network(seed=1))(BATCH)
    shown = learner._read(BATCH, teacher, learner._each())
    assert shown["logits"].dtype == torch.bfloat16
    losses, wide = learner(BATCH, teacher), exact(BATCH, teacher)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert all(
        math.isclose(float(losses[name].detach()), float(wide[name].detach()), rel_tol=0.05, abs_tol=0.01)
        for name in wide
    )
    losses["loss"].backward()
    assert all(value.grad.dtype == torch.float32 for value in learner.parameters())


def test_the_learner_in_a_plain_loop():
    """Anybody's optimizer, anybody's loop: the loss falls, the teacher stays, the student agrees in the end."""
    student, teacher_model = network(8, seed=2), network(16, seed=3)
    with torch.no_grad():
        teacher_model[4].weight.mul_(6)
    before = {name: value.clone() for name, value in teacher_model.state_dict().items()}
    teacher = Live(teacher_model, ["logits", "features"])
    learner = Learner(student, [match("kd", temperature=2.0), match("hint", "features", "features", weight=0.1)])
    learner.size(BATCH, teacher(BATCH))
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
    values = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(120):
            batch = batch_of(step)
            losses = learner(batch, teacher(batch))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            values.append(float(losses["loss"].detach()))
    assert sum(values[-10:]) < 0.5 * sum(values[:10])
    assert all(torch.equal(value, before[name]) for name, value in teacher_model.state_dict().items())
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in [*student.modules(), *teacher_model.modules()]
    )


def test_an_encoder_and_named_columns_are_the_students_own():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, left, right):
            return self.head(left + right)

    student = Adds()
    batch = {**BATCH, "inputs": torch.randint(0, 256, (ROWS, 4), dtype=torch.uint8), "other": torch.ones(ROWS, 4)}
    learner = Learner(
        student, ["labels"], encode=lambda left, right: (left.float() / 255, right), takes=("inputs", "other")
    )
    expected = nn.functional.cross_entropy(student(batch["inputs"].float() / 255, batch["other"]), batch["labels"])
    assert torch.allclose(learner(batch)["loss"], expected)


def test_a_part_of_the_batch_is_read_in_a_pass_of_its_own_with_the_teachers_same_rows():
    student = network().eval()
    learner = Learner(student, ["labels", match("mse_logits", part=0.25), match("kd", part=0.25)])
    teacher = Live(network(seed=1))(BATCH)
    losses = learner(BATCH, teacher)
    rows = torch.tensor([0, 4])  # spread over the batch of eight
    ours, theirs = student(BATCH["inputs"])[rows], teacher["logits"][rows]
    torch.testing.assert_close(losses["mse_logits"], match("mse_logits")({"logits": ours}, {"logits": theirs}, {}))
    torch.testing.assert_close(losses["kd"], match("kd")({"logits": ours}, {"logits": theirs}, {}))
    whole = Learner(student, ["labels"])(BATCH, teacher)
    torch.testing.assert_close(losses["labels"], whole["labels"])


@pytest.mark.parametrize("part", [0, -0.5, 1.5])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(LossError, match="part of the batch"):
        match("kd", part=part)


def test_rows_are_taken_as_long_as_the_longest_of_them():
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    signals = {
        "tokens": torch.rand(4, 5, 3), "tokens.mask": mask, "a@attention": torch.rand(4, 5, 5, 5),
        "a@attention.mask": mask, "logits": torch.rand(4, 5), "x.bank": torch.rand(9, 2),
        "x.bank.mask": torch.ones(4, 9),
    }  # fmt: skip
    some = taken(signals, torch.tensor([1, 2]))
    shapes = {name: tuple(value.shape) for name, value in some.items()}
    assert shapes == {
        "tokens": (2, 3, 3), "tokens.mask": (2, 3), "a@attention": (2, 5, 3, 3), "a@attention.mask": (2, 3),
        "logits": (2, 5), "x.bank": (9, 2), "x.bank.mask": (2, 9),
    }  # fmt: skip
    assert torch.equal(some["tokens"], signals["tokens"][1:3, :3])
