"""Models that give no derivative, or one that is zero everywhere: told apart, told of, and read otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom import Learner, match
from stillroom.errors import TapError
from stillroom.taps import read
from stillroom.taps.directions import directions

ROWS, CLASSES, WIDTH = 8, 5, 12


def network(width: int = WIDTH, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, classes))


def batch_of(width: int = WIDTH, rows: int = ROWS) -> dict[str, Tensor]:
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    ids = torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.long)], 1)
    return {"id": ids, "inputs": inputs, "labels": torch.arange(rows) % CLASSES}


class Frozen(nn.Module):
    """A body without a graph, and a head that is trained."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body, self.head = network(width, 16), nn.Linear(16, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(5)))

    def whole(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.body(inputs)
        return self.head(hidden)


class Detached(Frozen):
    """The same, cut off for forward mode too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs).detach())


class Rounds(nn.Module):
    """What goes in is rounded, as in a quantised model: the derivative is zero wherever there is one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.body = network(width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body((inputs * 16).round() / 16)


def seen(module: nn.Module, text: str, batch: dict[str, Tensor]) -> tuple[Tensor, list[str]]:
    with torch.no_grad():
        reader = read(module, [text])
        return reader(batch)[text], reader.notes


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def exact(whole, batch: dict[str, Tensor]) -> Tensor:
    inputs = batch["inputs"].clone().requires_grad_()
    logits = whole(inputs)
    return torch.autograd.grad(logits.amax(1).sum(), inputs)[0]


@pytest.mark.parametrize("kind", [Frozen, Detached])
def test_a_body_that_is_cut_off_is_read_by_differences_and_says_so(kind):
    net, batch = kind(), batch_of()
    found, notes = seen(net, "logits@gradient", batch)
    assert apart(found, exact(net.whole, batch)) < 1e-3
    assert "finite_difference (the model gives no gradient by 'inputs'" in notes[-1]


@pytest.mark.parametrize("kind", [Frozen, Detached])
@pytest.mark.parametrize("text", ["(mode=vjp)", "(label,mode=vjp)", "(random=2,mode=vjp)"])
def test_by_vjp_it_is_told_what_it_lacks_and_what_to_write(kind, text):
    with pytest.raises(
        TapError, match=r"gives no gradient by its 'inputs': .*Allowed: mode=finite_difference"
    ) as error:
        seen(kind(), f"logits@gradient{text}", batch_of())
    assert f"logits@gradient{text.replace('vjp', 'finite_difference')}" in str(error.value)


def test_forward_mode_sees_through_no_grad_and_not_through_detach():
    net, batch, text = Frozen(), batch_of(), "logits@gradient(random=2,mode=jvp)"
    expected, _ = seen(nn.Sequential(net.body, net.head), text, batch)
    torch.testing.assert_close(seen(net, text, batch)[0], expected)
    with pytest.raises(TapError, match=r"gives no gradient by its 'inputs': .*mode=finite_difference"):
        seen(Detached(), text, batch)


def test_forward_mode_of_an_operation_without_one_names_differences():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    class Neither(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values * 2

    class Doubles(nn.Module):
        def __init__(self, function: type[torch.autograd.Function]) -> None:
            super().__init__()
            self.function = function

        def forward(self, inputs: Tensor) -> Tensor:
            return self.function.apply(inputs)[:, :CLASSES]

    for kind, mode in ((Backward, "jvp"), (Neither, "jvp"), (Neither, "vjp")):
        with pytest.raises(TapError, match=r"no gradient by its 'inputs'.*mode=finite_difference"):
            seen(Doubles(kind), f"logits@gradient(random=2,mode={mode})", batch_of())
    assert seen(Doubles(Backward), "logits@gradient(random=2,mode=vjp)", batch_of())[0].any()
    found, notes = seen(Doubles(Neither), "logits@gradient", batch_of())
    assert apart(found.sum(1), torch.full((ROWS,), 2.0)) < 1e-3 and "finite_difference" in notes[-1]


def test_too_many_numbers_and_a_student_in_training_are_refused():
    with pytest.raises(TapError, match=r"no gradient by its 'inputs'.*logits@gradient\(random=4\)"):
        seen(Frozen(5000), "logits@gradient", batch_of(5000))
    learner, batch = Learner(Frozen(), [match("input_gradient")]), batch_of()
    told = {"logits": torch.eye(ROWS)[:, :CLASSES], "logits@gradient": torch.ones(ROWS, WIDTH)}
    with pytest.raises(TapError, match=r"'logits@gradient\(random=4,mode=finite_difference\)' on both sides"):
        learner(batch, told)


def test_a_place_inside_that_is_cut_off_names_a_later_one():
    class Inside(Frozen):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs).detach())

    with pytest.raises(TapError, match=r"no gradient by its 'body'.*Name a later one"):
        seen(Inside(), "logits@gradient(wrt=body)", batch_of())
    with pytest.raises(TapError, match=r"no gradient by its 'body'.*Name a later one"):
        seen(Frozen(), "logits@gradient(wrt=body)", batch_of())


def test_what_the_logits_are_not_made_of_is_told_apart():
    batch = {**batch_of(), "other": torch.randn(ROWS, 3)}
    for text in ("(wrt=other)", "(wrt=other,mode=vjp)", "(random=2,wrt=other,mode=jvp)"):
        with pytest.raises(TapError, match="logits do not depend on 'other'"):
            seen(network(), f"logits@gradient{text}", batch)


# --- zero everywhere -----------------------------------------------------------------------------------


def test_a_model_that_rounds_is_read_over_more_than_one_jump_and_says_so():
    net, batch = Rounds(), batch_of()
    with torch.no_grad():
        reader = read(net, ["logits@gradient"])
        found, again = (reader(batch)["logits@gradient"] for _ in range(2))
    assert torch.equal(found, again), "once it is found out, it stays so"
    assert "exactly zero for every row" in reader.notes[-1] and "0.064 of the example's length" in reader.notes[-1]
    smooth = exact(net.body, batch)
    assert float(torch.cosine_similarity(found, smooth, 1).mean()) > 0.9
    told, _ = seen(net, "logits@gradient(mode=finite_difference,step=0.05)", batch)
    assert float(torch.cosine_similarity(told, smooth, 1).mean()) > 0.9


@pytest.mark.parametrize("text", ["(mode=vjp)", "(loss,mode=vjp)", "(random=2,mode=vjp)", "(random=2,mode=jvp)"])
def test_where_a_mode_is_asked_for_a_model_that_rounds_is_refused(text):
    with pytest.raises(TapError, match=r"exactly zero for every row, though.*mode=finite_difference,step="):
        seen(Rounds(), f"logits@gradient{text}", batch_of())


def test_a_step_within_one_jump_is_refused_or_told_of():
    batch = batch_of()
    batch["inputs"] = (batch["inputs"] * 16).round() / 16  # in the middle between two jumps
    with pytest.raises(TapError, match=r"exactly zero for every row.*step="):
        seen(Rounds(), "logits@gradient(random=2)", batch)
    with pytest.raises(TapError, match=r"exactly zero for every row.*step="):
        seen(Rounds(), "logits@gradient(mode=finite_difference)", batch)
    _, notes = seen(Rounds(), "logits@gradient(random=2)", batch_of(rows=200))
    assert "depends on the step" in notes[-1] and "step=0.01" in notes[-1]
    assert len(seen(network(), "logits@gradient(random=2)", batch_of(rows=200))[1]) == 1


def test_a_model_that_is_flat_is_left_alone():
    class Flat(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return network()(inputs) * 0 + torch.arange(CLASSES)

    for text in ("", "(mode=vjp)", "(random=2,mode=jvp)", "(random=2)"):
        found, notes = seen(Flat(), f"logits@gradient{text}", batch_of())
        assert not found.any() and "exactly zero" in notes[-1]
    batch = {**batch_of(), "labels": torch.full((ROWS,), -1)}
    assert not any("zero" in note for note in seen(network(), "logits@gradient(loss)", batch)[1])


def test_a_student_may_be_flat():
    """It is trained, or follows a teacher: a dead student must be able to come to life."""
    net, batch = Rounds(), batch_of()
    told = {"logits": network(seed=3)(batch["inputs"]).detach()}
    assert not read(net, ["logits@gradient"])(batch)["logits@gradient"].any()
    with torch.no_grad():
        assert not read(net, ["logits@gradient"])(batch, told)["logits@gradient"].any()


def test_a_teacher_that_was_seen_alive_may_have_a_flat_batch():
    net = Rounds()
    net.forward = lambda inputs: net.body(torch.where(inputs > 50, inputs.round(), inputs))
    with torch.no_grad():
        reader, batch = read(net, ["logits@gradient(mode=vjp)"]), batch_of()
        assert reader(batch)["logits@gradient(mode=vjp)"].any()
        assert not reader({**batch, "inputs": batch["inputs"] + 100})["logits@gradient(mode=vjp)"].any()


# --- options that say nothing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("(random=2,step=0)", "goes nowhere: got step=0. Allowed: a number above 0"),
        ("(along=attack,step=0.0)", "goes nowhere"),
        ("(step=0.5)", r"no effect: got step=0.5 by vjp.*mode=finite_difference"),
        ("(random=2,mode=jvp,step=0.5)", "no effect: got step=0.5 by jvp"),
        ("(label,seed=3)", "seed of .* has no effect: got seed=3 along label"),
        ("(along=attack,seed=3)", "got seed=3 along attack"),
    ],
)
def test_options_without_an_effect_are_refused(text, message):
    with pytest.raises(TapError, match=message):
        read(network(), [f"logits@gradient{text}"])
    with pytest.raises(TapError, match=message):
        match("input_gradient", f"logits@gradient{text}", f"logits@gradient{text}")


def test_options_that_have_one_are_taken():
    batch = batch_of()
    whole, _ = seen(network(), "logits@gradient(mode=finite_difference,step=0.002)", batch)
    assert apart(whole, exact(network(), batch)) < 1e-3
    found, _ = seen(network(), "logits@gradient(random=2,step=0.001,seed=1)", batch)
    ways = directions(batch["id"], (WIDTH,), 2, 1)
    top = found.gather(2, network()(batch["inputs"]).argmax(1)[:, None, None].expand(-1, 2, 1))[..., 0]
    assert apart(top, torch.einsum("bd,bwd->bw", exact(network(), batch), ways)) < 5e-3
