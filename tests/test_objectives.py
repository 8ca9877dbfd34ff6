"""Binding losses to places: what meets what, which connector stands between, and what is refused in which words."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.contracts import Hidden, Vectors
from stillroom.errors import LossError, TapError
from stillroom.losses import memory, memory_cells, memory_prefix, memory_updates
from stillroom.objectives import Connector, masked_mean, match, objectives_of, pool, signature
from stillroom.settings import Ramp

ROWS = 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lengths_mask(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def sized(objective, student, teacher, batch=None):
    objective.size(student, teacher, batch or {})
    return objective


# --- the rule for shapes that differ ----------------------------------------------------------------


def test_equal_shapes_need_nothing():
    objective = sized(match("hint", "a", "b"), {"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 6)})
    assert not list(objective.parameters())
    assert objective({"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 6, seed=1)}, {}) == F.mse_loss(
        drawn(ROWS, 6), drawn(ROWS, 6, seed=1)
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "width"),
    [
        ((ROWS, 6), (ROWS, 9), (9, 6)),
        ((ROWS, 6, 8, 8), (ROWS, 6, 4, 4), None),  # the larger map is pooled
        ((ROWS, 6, 4, 4), (ROWS, 6, 8, 8), None),
        ((ROWS, 3, 8, 8), (ROWS, 5, 4, 4), (5, 3)),
        ((ROWS, 6, 8, 8), (ROWS, 9), (9, 6)),  # a map against a vector: mean over space
        ((ROWS, 6), (ROWS, 6, 8, 8), None),
        ((ROWS, 7, 6), (ROWS, 7, 9), (9, 6)),  # equal lengths: step by step
        ((ROWS, 7, 6), (ROWS, 5, 6), None),  # unequal lengths: mean over time
        ((ROWS, 7, 6), (ROWS, 5, 9), (9, 6)),
        ((ROWS, 7, 6), (ROWS, 9), (9, 6)),
    ],
)
def test_what_differs_is_pooled_and_then_mapped(mine, theirs, width):
    student, teacher = {"a": drawn(*mine)}, {"b": drawn(*theirs, seed=1)}
    objective = sized(match("hint", "a", "b"), student, teacher)
    shapes = [tuple(value.shape) for value in objective.parameters()]
    assert shapes == ([] if width is None else [width])
    value = objective(student, teacher, {})
    assert torch.isfinite(value) and value > 0
    pooled, target = pool(student["a"], teacher["b"])
    if width is not None:
        pooled = objective.connectors["0"](pooled)
    assert value == F.mse_loss(pooled, target)


def test_maps_are_pooled_to_the_smaller_in_each_direction():
    mine, theirs = pool(drawn(2, 3, 8, 2), drawn(2, 5, 4, 6))
    assert mine.shape == (2, 3, 4, 2) and theirs.shape == (2, 5, 4, 2)
    assert torch.allclose(mine, drawn(2, 3, 8, 2).unflatten(2, (4, 2)).mean(3))


def test_time_is_a_mean_over_the_steps_there_are():
    student, teacher = drawn(3, 4, 2), drawn(3, 6, 2, seed=1)
    ours, theirs = lengths_mask(4, 1, 2), lengths_mask(6, 3, 5)
    mine, target = pool(student, teacher, ours, theirs)
    assert torch.allclose(mine[1], student[1, 0]) and torch.allclose(target[2], teacher[2, :5].mean(0))
    signals = {"a": student, "a.mask": ours}, {"b": teacher, "b.mask": theirs}
    objective = sized(match("hint", "a", "b"), *signals)
    assert objective(*signals, {}) == F.mse_loss(mine, target)
    spoiled = {"a": student.masked_fill(~ours[..., None], 1e6), "a.mask": ours}
    assert objective(spoiled, signals[1], {}) == objective(*signals, {}), "padding is never read"


def test_a_row_without_a_step_gives_zeros():
    assert masked_mean(drawn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).abs().max() == 0


@pytest.mark.parametrize(("mine", "theirs"), [((ROWS, 6), (ROWS, 9)), ((ROWS, 6, 2, 2), (ROWS, 4, 2, 2))])
def test_a_connector_is_orthogonal_and_belongs_to_its_name_and_seed(mine, theirs):
    def made(name="hint", seed=0):
        torch.manual_seed(seed + 17)
        before = torch.random.get_rng_state()
        objective = match("hint", "a", "b", name=name)
        objective.size({"a": drawn(*mine)}, {"b": drawn(*theirs)}, {}, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return objective.connectors["0"].weight.detach()

    weight = made()
    small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)
    assert (
        torch.equal(weight, made()) and not torch.equal(weight, made("other")) and not torch.equal(weight, made(seed=1))
    )


def test_a_connector_of_maps_works_place_by_place():
    maps = drawn(ROWS, 3, 2, 2)
    connector = Connector(maps, drawn(ROWS, 5, 2, 2))
    by_place = torch.einsum("oc,bchw->bohw", connector.weight, maps)
    assert torch.allclose(connector(maps), by_place, atol=1e-6)


def test_a_connector_of_states_serves_all_layers_and_each_direction_apart():
    student, teacher = drawn(ROWS, 5, 2, 2, 3), drawn(ROWS, 5, 1, 2, 6, seed=1)
    connector = Connector(student, teacher)
    assert connector.weight.shape == (2, 6, 3)
    for block in connector.weight.detach():
        assert torch.allclose(block.T @ block, torch.eye(3), atol=1e-5)
    by_place = torch.einsum("btldi,doi->btldo", student, connector.weight)
    assert torch.allclose(connector(student), by_place, atol=1e-6)
    assert torch.allclose(connector(student)[1, 2, 0, 1], connector.weight[1] @ student[1, 2, 0, 1], atol=1e-6)
    single = Connector(student[:, :, :, :1], teacher)
    assert single.weight.shape == (6, 3)
    assert torch.allclose(single(student[:, :, :, :1])[0, 1, 1, 0], single.weight @ student[0, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "width"),
    [
        ((5, 1, 1, 3), (5, 2, 2, 6), (6, 3)),  # one direction follows the forward one of two, in the last layer
        ((5, 2, 2, 3), (5, 1, 1, 6), (2, 6, 3)),
        ((5, 2, 1, 6), (5, 1, 2, 6), None),
    ],
)
def test_states_are_connected_and_never_pooled(ours, theirs, width):
    student, teacher = {"m@h": drawn(ROWS, *ours)}, {"m@h": drawn(ROWS, *theirs, seed=1)}
    for loss in (memory, memory_cells, memory_updates):
        objective = sized(match(loss.__name__, "m@h", "m@h"), student, teacher)
        assert [tuple(value.shape) for value in objective.parameters()] == ([] if width is None else [width])
        mine = student["m@h"] if width is None else objective.connectors["0"](student["m@h"])
        assert torch.equal(objective(student, teacher, {}), loss(mine, teacher["m@h"]))


def test_a_transformers_tokens_meet_states_of_their_width():
    student, teacher = {"m@h": drawn(ROWS, 5, 2, 2, 3)}, {"tokens": drawn(ROWS, 5, 6, seed=1)}
    objective = sized(match("memory_prefix", "m@h", "tokens", temperature=2), student, teacher)
    expected = memory_prefix(objective.connectors["0"](student["m@h"]), teacher["tokens"], temperature=2)
    assert objective.connectors["0"].weight.shape == (2, 6, 3) and objective(student, teacher, {}) == expected
    with pytest.raises(
        LossError, match=r"'m@h' \(4, 5, 2, 2, 3\) with the teacher's 'tokens' \(4, 5, 6\).*'connector: none'"
    ):
        sized(match("memory_prefix", "m@h", "tokens", connector="none"), student, teacher)


def test_linear_puts_a_connector_even_between_equals_and_none_puts_none():
    student, teacher = {"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 6)}
    assert len(list(sized(match("hint", "a", "b", connector="linear"), student, teacher).parameters())) == 1
    with pytest.raises(LossError, match=r"'a' \(4, 6\) with the teacher's 'b' \(4, 9\).*Leave 'connector: none' out"):
        sized(match("hint", "a", "b", connector="none"), student, {"b": drawn(ROWS, 9)})


def test_sizing_twice_keeps_the_connector():
    student, teacher = {"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 9)}
    objective = sized(match("hint", "a", "b"), student, teacher)
    weight = objective.connectors["0"].weight
    sized(objective, student, teacher)
    assert objective.connectors["0"].weight is weight


def test_shapes_that_changed_since_are_named():
    objective = sized(match("hint", "a", "b"), {"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 6)})
    with pytest.raises(LossError, match=r"\(4, 6\).*\(4, 7\).*as they were when the connectors were sized"):
        objective({"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 7)}, {})


def test_unequal_classes_are_named_before_and_while_training():
    student, teacher = {"logits": drawn(ROWS, 5)}, {"logits": drawn(ROWS, 7)}
    for name in ("kd", "mse_logits"):
        for attempt in (lambda one: one.size(student, teacher, {}), lambda one: one(student, teacher, {})):
            with pytest.raises(
                LossError, match=r"'logits' \(4, 5\).*'logits' \(4, 7\)\. Give both models the same classes"
            ):
                attempt(match(name))
    prepared = match("kd")
    with pytest.raises(LossError, match=r"\(4, 5\).*\(4, 7\)"):
        prepared(student, {prepared.prepared_name: teacher["logits"].softmax(1)}, {})


def test_what_was_not_sized_says_so():
    with pytest.raises(LossError, match=r"'hint' has not seen the shapes.*learner\.size\(batch, teacher\(batch\)\)"):
        match("hint", "a", "b")({"a": drawn(ROWS, 6)}, {"b": drawn(ROWS, 6)}, {})


# --- pairs, own signals, functions of one's own ------------------------------------------------------


def test_pairs_are_summed_and_each_has_its_connector():
    student = {"a": drawn(ROWS, 3), "b": drawn(ROWS, 4)}
    teacher = {"x": drawn(ROWS, 5, seed=1), "y": drawn(ROWS, 4, seed=2)}
    objective = sized(match("hint", ["a", "b"], ["x", "y"]), student, teacher)
    assert list(objective.connectors) == ["0"]
    expected = F.mse_loss(objective.connectors["0"](student["a"]), teacher["x"]) + F.mse_loss(
        student["b"], teacher["y"]
    )
    assert objective(student, teacher, {}) == expected
    with pytest.raises(LossError, match="pairs taps one to one: got 2 of the student and 1 of the teacher"):
        match("hint", ["a", "b"], ["x"])


def test_every_pair_counts_when_targets_were_prepared_for_one():
    student = {"output[a]": drawn(ROWS, 3), "output[b]": drawn(ROWS, 3, seed=1)}
    teacher = {"output[a]": drawn(ROWS, 3, seed=2), "output[b]": drawn(ROWS, 3, seed=3)}
    both = match("kd", ["output[a]", "output[b]"], ["output[a]", "output[b]"])
    single = [match("kd", f"output[{name}]", f"output[{name}]") for name in "ab"]
    assert both.prepared is None and single[0].prepared is not None
    assert both(student, teacher, {}) == sum(one(student, teacher, {}) for one in single)


def test_ones_own_signals_are_read_detached():
    objective = match("hint", "early", {"student": "late"})
    assert [one.key for one in objective.places("student")] == ["early", "late"] and objective.places("teacher") == []
    student = {"early": drawn(ROWS, 3).requires_grad_(), "late": drawn(ROWS, 3, seed=1).requires_grad_()}
    sized(objective, student, {})(student, {}, {}).backward()
    assert student["early"].grad is not None and student["late"].grad is None


def test_ones_own_logits_are_never_prepared():
    own = match("kd", "output[a]", {"student": "output[b]"})
    assert own.prepared is None and own.prepared_name == ""


def test_a_mapping_names_a_place_for_each_parameter():
    def twice(student_a: Tensor, student_b: Tensor, teacher: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * ((student_a - teacher).square().mean() + (student_b - teacher).square().mean())

    objective = match(twice, {"student_a": "x", "student_b": "y"}, "z", connector="none", scale=3.0)
    assert objective.name == "twice" and [str(one.tap) for one in objective.places("student")] == ["x", "y"]
    zeros, ones = torch.zeros(ROWS, 2), torch.ones(ROWS, 2)
    assert sized(objective, {"x": zeros, "y": ones}, {"z": ones})({"x": zeros, "y": ones}, {"z": ones}, {}) == 3


def test_a_function_of_ones_own_gets_columns_and_masks():
    seen = {}

    def mine(student: Tensor, weights: Tensor, student_mask: Tensor) -> Tensor:
        seen.update(student=student, weights=weights, mask=student_mask)
        return (student.mean((1, 2)) * weights).sum()

    objective = match(mine, Hidden("layer"))
    assert objective.role == "task"
    mask = torch.ones(ROWS, 3, dtype=torch.bool)
    objective({"layer": drawn(ROWS, 3, 2), "layer.mask": mask}, {}, {"weights": torch.ones(ROWS)})
    assert seen["mask"] is mask and seen["weights"].shape == (ROWS,)
    with pytest.raises(
        LossError, match=r"reads a column that the batch does not have: got 'weights'\. Did you mean 'weight'"
    ):
        objective({"layer": drawn(ROWS, 3, 2)}, {}, {"weight": torch.ones(ROWS)})


def test_roles():
    roles = {name: match(name, *places).role for name, *places in (("labels",), ("kd",), ("l2",), ("hint", "a", "b"))}
    assert roles == {"labels": "task", "kd": "distil", "l2": "penalty", "hint": "distil"}


def test_the_bank_is_read_beside_the_teachers_place():
    objective = match("bank", "features", "big/features")
    assert objective.banks == ["big/features"]
    student = {"features": drawn(ROWS, 3)}
    teacher = {
        "big/features": drawn(ROWS, 5),
        "big/features.bank": drawn(8, 5, seed=2),
        "big/features.bank.mask": torch.ones(ROWS, 8, dtype=torch.bool),
    }
    value = sized(objective, student, teacher)(student, teacher, {})
    assert objective.connectors["0"].weight.shape == (5, 3) and value > 0
    with pytest.raises(LossError, match=r"not shown: got 'big/features\.bank'"):
        objective(student, {"big/features": drawn(ROWS, 5)}, {})


def test_a_bank_of_maps_is_pooled_like_the_teacher():
    objective = match("bank", "features", "layer")
    student = {"features": drawn(ROWS, 5)}
    teacher = {"layer": drawn(ROWS, 5, 4, 4), "layer.bank": drawn(8, 5, 4, 4, seed=2)}
    value = sized(objective, student, teacher)(student, teacher, {})
    flat = {"layer": teacher["layer"].mean((2, 3)), "layer.bank": teacher["layer.bank"].mean((2, 3))}
    assert torch.allclose(value, sized(match("bank", "features", "layer"), student, flat)(student, flat, {}), rtol=1e-5)


# --- weights, names, refusals --------------------------------------------------------------------------


def test_a_ramp_goes_from_one_weight_to_the_other():
    objective = match("kd", weight={"from": 1, "to": 0.2, "until": 0.5, "start": 0.1})
    assert isinstance(objective.weight, Ramp)
    assert [round(objective.weight_at(at), 6) for at in (0, 0.1, 0.3, 0.5, 1)] == [1, 1, 0.6, 0.2, 0.2]
    assert match("kd", weight=0.7).weight_at(0.9) == 0.7


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"form": 1, "to": 0, "until": 0.5}, "from: Field required"),
        ({"from": 1, "to": 0, "until": 1.5}, "until: Input should be less than or equal to 1"),
        ({"from": 1, "to": 0, "until": 0.2, "start": 0.4}, r"start \(0\.4\) must lie before until"),
    ],
)
def test_a_broken_ramp_is_explained(weight, message):
    with pytest.raises(LossError, match=rf"weight of the objective 'kd' is no ramp.*{message}"):
        match("kd", weight=weight)


def test_every_so_many_steps():
    objective = match("kd", every=3)
    assert [step for step in range(7) if objective.active(step)] == [0, 3, 6]
    with pytest.raises(LossError, match="every so many steps: got 0. Allowed: 1 or more"):
        match("kd", every=0)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: match("kdd"), LossError, r"no such loss: got 'kdd'\. Did you mean 'd?kd'\?"),
        (
            lambda: match("kd", temprature=2),
            LossError,
            r"no such option: got 'temprature'\. Did you mean 'temperature'",
        ),
        (
            lambda: match("kd", temperature=0),
            LossError,
            r"'temperature' of the loss 'kd' is out of its range: got 0\..*greater than 0",
        ),
        (lambda: match("kd", temperature=float("nan")), LossError, r"out of its range: got nan"),
        (lambda: match("labels", smoothing=1), LossError, r"got 1\. Allowed: less than 1"),
        (lambda: match("labels", smoothing="much"), LossError, r"got 'much'\. Allowed: a valid number"),
        (
            lambda: match("labels", teacher="logits"),
            LossError,
            "reads nothing of the teacher: got 'logits'. Leave 'teacher:' out",
        ),
        (lambda: match("hint", "a", "b]"), TapError, r"not a tap: got 'b\]'"),
        (
            lambda: match("attention_transfer"),
            LossError,
            r"does not know where to read 'student_maps' \(maps \(example, channel",
        ),
        (
            lambda: match(lambda teacher, labels: teacher.sum()),
            LossError,
            "reads nothing of the student.*names that begin with student",
        ),
    ],
)
def test_what_cannot_be_bound_is_refused_in_words(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()


def test_a_signal_that_was_not_shown_is_named():
    with pytest.raises(
        LossError, match=r"'kd' reads a signal that was not shown: got 'logits'\. Did you mean 'logit'\?"
    ):
        match("kd")({"logits": drawn(ROWS, 3)}, {"logit": drawn(ROWS, 3)}, {})
    with pytest.raises(LossError, match="not shown: got 'logits'"):
        match("kd").size({"logits": drawn(ROWS, 3)}, {}, {})


def test_options_are_kept_as_the_loss_has_them():
    assert match("kd", temperature=4).prepared_name == match("kd", temperature=4.0).prepared_name
    assert match("kd", temperature=4).prepared_name != match("kd", temperature=5).prepared_name


def test_a_signature_is_the_schema():
    def loss(
        student_logits: Vectors, teacher: Tensor, labels: Tensor, teacher_mask: Tensor, *, a: float, b: int = 2
    ) -> Tensor:
        return student_logits.sum()

    reads = signature(loss)
    assert [(slot.name, slot.side, slot.mask) for slot in reads.slots] == [
        ("student_logits", "student", False),
        ("teacher", "teacher", False),
        ("labels", "column", False),
        ("teacher_mask", "teacher", True),
    ]
    assert reads.options == ("a", "b") and reads.slots[0].kind.name == "vectors"


# --- precision ---------------------------------------------------------------------------------------------


def test_objectives_compute_in_float32_under_autocast():
    def noted(student: Tensor, teacher: Tensor) -> Tensor:
        types.append((student.dtype, teacher.dtype, (student @ teacher.T).dtype))
        return (student - teacher).square().mean()

    types: list = []
    objective = match(noted, "a", "b")
    student, teacher = {"a": drawn(ROWS, 6).bfloat16()}, {"b": drawn(ROWS, 9).half()}
    with torch.autocast("cpu", torch.bfloat16):
        sized(objective, student, teacher)
        assert objective(student, teacher, {}).dtype == torch.float32
    assert set(types) == {(torch.float32,) * 3}


def test_a_loss_over_lists_gets_all_pairs_at_once():
    def fusion(student: list[torch.Tensor], teacher: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        assert isinstance(student, list) and isinstance(labels, torch.Tensor)
        return torch.stack([(a - b).abs().sum() for a, b in zip(student, teacher, strict=True)]).prod()

    objective = match(fusion, ["a", "b"], ["a", "c"])
    student = {"a": torch.full((2, 1), 3.0), "b": torch.full((2, 1), 5.0)}
    teacher = {"a": torch.full((2, 1), 1.0), "c": torch.full((2, 1), 2.0)}
    objective.size(student, teacher, {"labels": torch.zeros(2)})
    assert float(objective(student, teacher, {"labels": torch.zeros(2)})) == 4.0 * 6.0


def test_a_list_of_taps_is_summed_though_no_teacher_is_read():
    def size(student_maps: Tensor) -> Tensor:
        return student_maps.mean()

    objective = match(size, ["one", "two"])
    signals = {"one": torch.full((2, 3), 1.0), "two": torch.full((2, 5), 10.0)}
    assert [str(place.tap) for place in objective.places("student")] == ["one", "two"]
    assert objective(signals, {}, {}).item() == 11.0


def test_what_a_person_gives_becomes_fresh_objectives():
    def own(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        return (student_logits - teacher_logits).abs().mean()

    kept = match("hint", "a", "b")
    made = objectives_of(["labels", own, kept, lambda: match("kd", temperature=2.0)])
    assert [one.name for one in made] == ["labels", "own", "hint", "kd"]
    assert made[2] is not kept and made[3].options == {"temperature": 2.0}
    assert [one.name for one in objectives_of("kd")] == ["kd"]
    for wrong in ([], [3], [lambda: 3]):
        with pytest.raises(LossError):
            objectives_of(wrong)


def test_a_loss_that_keeps_its_axes_is_refused():
    def unreduced(student_logits: torch.Tensor) -> torch.Tensor:
        return student_logits.sum(1)

    with pytest.raises(LossError, match=r"must return one number: got shape \(2,\)"):
        match(unreduced)({"logits": torch.ones(2, 3)}, {}, {})


def test_stretches_are_read_of_a_student():
    with pytest.raises(LossError, match=r"of the teacher: got 'm@segments.c/7'. Allowed: 'm@h' or 'm@c/7'"):
        match("memory_cells", "m@c/7", "m@segments.c/7")
    assert match("memory_cells", ["m@segments.c/7"], ["m@c/7"]).pairs


@pytest.mark.parametrize(
    ("loss", "axes", "told"),
    [
        ("memory", (2, 5, 8), "of a transformer take the loss memory_prefix"),
        ("memory_prefix", (2, 5, 1, 1, 8), "of a recurrent teacher take the loss memory"),
        ("memory_prefix", (2, 8), "reads a transformer's tokens, such as 'body.encoder.layer.5'"),
        ("memory_cells", (2, 3, 1, 1, 8), "the same number behind '/'"),
    ],
)
def test_what_is_no_memory_is_answered_with_the_loss_that_fits(loss, axes, told):
    shown, target = {"m@h": torch.randn(2, 5, 1, 1, 8)}, {"m@h": torch.randn(*axes)}
    with pytest.raises(LossError) as refused:
        match(loss, "m@h", "m@h").size(shown, target, {})
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, ["logits@gradient", "logits@gradient", "logits"]),
        ({"student": "logits@gradient(random=2)"}, ["logits@gradient(random=2)"] * 2),
        ({"teacher": "big/logits@gradient(label)"}, ["logits@gradient(label)", "big/logits@gradient(label)"]),
        (
            {"student": "logits@gradient(label,wrt=a)", "teacher": "logits@gradient(label,wrt=b)"},
            ["logits@gradient(label,wrt=a)", "logits@gradient(label,wrt=b)"],
        ),
    ],
)
def test_derivatives_are_read_alike_on_both_sides_unless_both_are_named(given, expected):
    objective = match("input_gradient", **given)
    assert [one.key for side in ("student", "teacher") for one in objective.places(side)] == expected
