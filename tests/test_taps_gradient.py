"""Derivatives of the logits: three modes that agree, the same variable on both sides, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillroom import Learner, Live, Training, match, train
from stillroom.contracts import GradCam, Gradient, Step, tap
from stillroom.data.arrays import ArraySource
from stillroom.errors import TapError
from stillroom.record import record
from stillroom.store import Store
from stillroom.taps import read
from stillroom.taps.derivatives import refuse_for_training
from stillroom.taps.directions import directions

ROWS, CLASSES = 6, 5


def batch_of(inputs: Tensor, **columns: Tensor) -> dict[str, Tensor]:
    count = len(inputs)
    ids = torch.stack([torch.arange(count), torch.arange(count) % 2], 1)
    return {"id": ids, "inputs": inputs, "labels": torch.arange(count) % CLASSES, **columns}


def smooth(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, CLASSES)]
    return nn.Sequential(*layers).to(dtype)


def maps(**more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(1, 4, 3), "act": nn.GELU(), **more}
    net = nn.Sequential()
    for name, part in {
        **parts,
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(4, CLASSES),
    }.items():
        net.add_module(name, part)
    return net


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def seen(module: nn.Module, text: str, batch: dict[str, Tensor], **more) -> Tensor:
    with torch.no_grad():
        return read(module, [text], **more)(batch)[text]


# --- what is computed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, forward, difference", [(torch.float32, 1e-5, 1e-3), (torch.float64, 1e-6, 1e-3)])
def test_three_modes_agree_along_random_directions(dtype, forward, difference):
    net, batch = smooth(dtype), batch_of(torch.randn(ROWS, 12, dtype=dtype))
    exact, ahead, step = (
        seen(net, f"logits@gradient(random=3,mode={mode})", batch) for mode in ("vjp", "jvp", "finite_difference")
    )
    assert exact.shape == (ROWS, 3, CLASSES) and exact.dtype == dtype
    assert apart(ahead, exact) < forward
    assert apart(step, exact) < difference


def test_a_directional_derivative_is_the_gradient_times_the_direction():
    net, batch = smooth(torch.float64), batch_of(torch.randn(ROWS, 12, dtype=torch.float64))
    ways = directions(batch["id"], (12,), 2, 0).double()
    along = seen(net, "logits@gradient(random=2,mode=jvp)", batch)
    whole = seen(net, "logits@gradient(label)", batch)
    expected = torch.einsum("bd,bwd->bw", whole, ways)
    found = along.gather(2, batch["labels"][:, None, None].expand(-1, 2, 1))[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_coordinates_by_differences_are_the_gradient():
    net, batch = smooth(), batch_of(torch.randn(ROWS, 12))
    exact = seen(net, "logits@gradient(loss)", batch)
    assert apart(seen(net, "logits@gradient(loss,mode=finite_difference)", batch), exact) < 1e-3


def test_the_loss_and_the_label_are_of_the_true_class_and_nothing_without_one():
    net, batch = smooth(), batch_of(torch.randn(ROWS, 12))
    batch["labels"][2] = -1
    inputs = batch["inputs"].clone().requires_grad_()
    value = nn.functional.cross_entropy(net(inputs), batch["labels"], ignore_index=-1, reduction="sum")
    expected = torch.autograd.grad(value, inputs)[0]
    found = seen(net, "logits@gradient(loss)", batch)
    torch.testing.assert_close(found, expected)
    for along in ("loss", "label"):
        found = seen(net, f"logits@gradient({along})", batch)
        assert not found[2].any() and all(found[row].any() for row in (0, 1, 3))


def test_the_student_follows_the_teachers_class():
    net, batch = smooth(), batch_of(torch.randn(ROWS, 12))
    told = torch.nn.functional.one_hot(torch.full((ROWS,), 3), CLASSES).float()
    found = read(net, ["logits@gradient"])(batch, {"logits": told})["logits@gradient"]
    expected = seen(net, "logits@gradient(label)", {**batch, "labels": torch.full((ROWS,), 3)})
    torch.testing.assert_close(found.detach(), expected)


def test_a_column_is_gone_along_as_far_as_it_is_long():
    """What IGDM compares: the answer at the end of the column less the answer at its beginning."""
    net = smooth()
    batch = batch_of(torch.randn(ROWS, 12), attack=torch.randn(ROWS, 12))
    found = seen(net, "logits@gradient(along=attack,step=1)", batch)
    with torch.no_grad():
        expected = net(batch["inputs"] + batch["attack"]) - net(batch["inputs"])
    assert found.shape == (ROWS, 1, CLASSES)
    torch.testing.assert_close(found[:, 0], expected)


@pytest.mark.parametrize("encoded", [None, lambda pixels: pixels.float() / 255 - 0.5])
def test_pixels_are_differentiated_before_encode(encoded):
    net, pixels = maps(), torch.randint(0, 256, (ROWS, 1, 7, 7), dtype=torch.uint8)
    found = seen(net, "logits@gradient(label)", batch_of(pixels), encode=encoded)
    floats = pixels.float().requires_grad_()
    logits = net(floats if encoded is None else encoded(floats))
    chosen = logits.gather(1, (torch.arange(ROWS) % CLASSES)[:, None]).sum()
    torch.testing.assert_close(found, torch.autograd.grad(chosen, floats)[0])


def test_with_respect_to_what_leaves_a_submodule_trained_or_not():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(9, 4), nn.Linear(4, CLASSES)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.fc(self.words(tokens).tanh().mean(1))

    torch.manual_seed(0)
    net, batch = Words(), batch_of(torch.randint(0, 9, (ROWS, 3)))
    told = {"logits": net(batch["inputs"]).detach()}
    loose = read(net, ["logits@gradient(wrt=words)"])(batch, told)["logits@gradient(wrt=words)"]
    assert loose.shape == (ROWS, 3, 4) and loose.requires_grad
    net.words.weight.requires_grad_(False)
    frozen = read(net, ["logits@gradient(wrt=words)"])(batch, told)["logits@gradient(wrt=words)"]
    torch.testing.assert_close(frozen, loose)
    frozen.square().sum().backward()
    assert net.fc.weight.grad is not None and net.words.weight.grad is None
    net.requires_grad_(False)
    torch.testing.assert_close(seen(net, "logits@gradient(wrt=words)", batch), loose.detach())


def test_grad_cam_of_average_pooling_and_a_linear_layer_is_the_class_activation_map():
    net, batch = maps(), batch_of(torch.rand(ROWS, 1, 7, 7))
    found = seen(net, "act@gradcam(label)", batch)
    with torch.no_grad():
        features = net.act(net.conv(batch["inputs"]))
        weights = net.fc.weight[batch["labels"]]
        expected = torch.einsum("bc,bchw->bhw", weights, features).relu() / 25
    torch.testing.assert_close(found, expected)


def test_what_later_layers_do_in_place_does_not_matter():
    plain, hasty = maps(), maps(relu=nn.ReLU(inplace=True))
    batch = batch_of(torch.rand(ROWS, 1, 7, 7))
    after = seen(nn.Sequential(plain[:2], nn.ReLU(), *plain[2:]), "0@gradcam(label)", batch)
    torch.testing.assert_close(seen(hasty, "act@gradcam(label)", batch), after)


def test_other_taps_come_from_the_same_pass():
    net, batch = maps(), batch_of(torch.rand(ROWS, 1, 7, 7))
    taps = ["logits", "conv", "act@gradcam", "logits@gradient", "logits@gradient(random=2,mode=jvp)"]
    found = read(net, taps)(batch)
    assert list(found) == ["logits", "conv", *[name for name in found if "@" in name]] and len(found) == 5
    torch.testing.assert_close(found["logits"], net(batch["inputs"]))
    torch.testing.assert_close(found["conv"], net.conv(batch["inputs"]))
    assert all(value.requires_grad for value in found.values())
    assert not any(value.requires_grad for value in seen_all(net, taps, batch).values())


def seen_all(module: nn.Module, taps: list[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return read(module, taps)(batch)


# --- directions ---------------------------------------------------------------------------------------


def test_directions_belong_to_the_example_and_its_view():
    ids = torch.tensor([[4, 0], [9, 1], [4, 1]])
    all_ways = directions(ids, (3, 5, 5), 4, 0)
    assert all_ways.shape == (3, 4, 3, 5, 5)
    torch.testing.assert_close(all_ways.flatten(2).norm(dim=2), torch.ones(3, 4))
    assert torch.equal(directions(ids[1:2], (3, 5, 5), 4, 0)[0], all_ways[1]), "whatever else is in the batch"
    assert torch.equal(directions(ids, (3, 5, 5), 2, 0), all_ways[:, :2]), "the first are the same, however many"
    for other in (directions(ids, (3, 5, 5), 4, 1)[0], all_ways[2], all_ways[0].flip(0)):
        assert abs(float((other * all_ways[0]).sum()) / 4) < 0.5


def test_directions_point_everywhere_alike():
    ids = torch.stack([torch.arange(4000), torch.zeros(4000, dtype=torch.long)], 1)
    ways = directions(ids, (6,), 1, 0)[:, 0]
    torch.testing.assert_close(ways.T @ ways / len(ways), torch.eye(6) / 6, atol=0.02, rtol=0)


# --- how it is read -----------------------------------------------------------------------------------


def test_dropout_is_off_and_modes_come_back():
    net = nn.Sequential(nn.Linear(12, 32), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, CLASSES)).train()
    reader, batch = read(net, ["logits", "logits@gradient(label)"]), batch_of(torch.randn(ROWS, 12))
    one, other = reader(batch), reader(batch)
    torch.testing.assert_close(one["logits"], other["logits"])
    torch.testing.assert_close(one["logits@gradient(label)"], other["logits@gradient(label)"])
    assert all(part.training for part in net.modules())


def test_moved_passes_leave_no_trace_in_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)).train()
    batch = batch_of(torch.randn(ROWS, 12))
    read(net, ["logits@gradient(random=3)"])(batch)
    once = net[1].running_mean.clone()
    assert int(net[1].num_batches_tracked) == 1
    net[1].reset_running_stats()
    read(net, ["logits"])(batch)
    torch.testing.assert_close(net[1].running_mean, once)


def test_bfloat16_around_it_changes_nothing():
    net, batch = smooth(), batch_of(torch.randn(ROWS, 12))
    plain = seen(net, "logits@gradient", batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seen(net, "logits@gradient", batch), plain)


@pytest.mark.parametrize("mode", ["vjp", "jvp", "finite_difference"])
def test_every_mode_trains_and_all_agree_on_where_to(mode):
    net, batch = smooth(torch.float64), batch_of(torch.randn(ROWS, 12, dtype=torch.float64))
    text = f"logits@gradient(random=2,mode={mode})"
    read(net, [text])(batch)[text].square().sum().backward()
    mine = torch.cat([value.grad.flatten() for value in net.parameters() if value.grad is not None])
    exact = smooth(torch.float64)
    ways, jacobian = directions(batch["id"], (12,), 2, 0).double(), torch.func.jacrev(lambda one: exact(one))
    rows = torch.stack([jacobian(one) for one in batch["inputs"]])
    torch.einsum("bcd,bwd->bwc", rows, ways).square().sum().backward()
    wanted = torch.cat([value.grad.flatten() for value in exact.parameters() if value.grad is not None])
    assert float(nn.functional.cosine_similarity(mine[: len(wanted)], wanted, 0)) > 0.9999
    assert apart(mine[: len(wanted)], wanted) < (1e-2 if mode == "finite_difference" else 1e-9)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("mode", ["vjp", "jvp", "finite_difference"])
def test_recurrent_networks_are_read_by_every_mode(cell, mode):
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.fc = cell(3, 8, batch_first=True), nn.Linear(8, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.fc(self.memory(inputs)[0][:, -1])

    torch.manual_seed(0)
    net, batch, text = Memory(), batch_of(torch.randn(ROWS, 4, 3)), f"logits@gradient(random=2,mode={mode})"
    shown = read(net, [text, "memory@state/2"])(batch)
    shown[text].square().sum().backward()
    assert net.memory.weight_ih_l0.grad is not None and net.memory.weight_ih_l0.grad.any()
    torch.testing.assert_close(shown["memory@h"].detach()[:, :, 0, 0], net.memory(batch["inputs"])[0].detach())
    assert apart(shown[text].detach(), seen(net, "logits@gradient(random=2,mode=vjp)", batch)) < 3e-3


def test_fused_attention_is_read_twice():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, CLASSES)).train()
    batch = batch_of(torch.randn(ROWS, 4, 8))
    for text in ("logits@gradient", "logits@gradient(random=1)"):
        net.zero_grad()
        read(net, [text])(batch)[text].square().sum().backward()
        assert layer.self_attn.in_proj_weight.grad.abs().max() > 0
    exact, ahead = (seen(net.eval(), f"logits@gradient(random=2,mode={mode})", batch) for mode in ("vjp", "jvp"))
    assert apart(ahead, exact) < 1e-5


def test_the_notes_say_which_mode_and_why():
    reader = read(smooth(), ["logits@gradient", "logits@gradient(random=2)", "logits@gradient(random=1,mode=jvp)"])
    for _ in range(2):
        reader(batch_of(torch.randn(ROWS, 12)))
    assert [note.split(" (")[0] for note in reader.notes] == [
        "logits@gradient is read by vjp",
        "logits@gradient(random=2) is read by finite_difference",
    ], "what was asked for needs no note"


# --- what has no derivative ----------------------------------------------------------------------------


class Closed(nn.Module):
    """A model that shows only answers: no graph behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = smooth()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self.inner(inputs).detach().numpy())


class Numpy(Closed):
    """Refuses inputs that ask for a gradient, as wrapped runtimes do."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(inputs.numpy()))


@pytest.mark.parametrize("kind", [Closed, Numpy])
def test_a_model_without_a_graph_is_read_by_differences_and_says_so(kind):
    net, batch = kind(), batch_of(torch.randn(ROWS, 12))
    reader = read(net, ["logits@gradient"])
    with torch.no_grad():
        found = reader(batch)["logits@gradient"]
    assert apart(found, seen(net.inner, "logits@gradient", batch)) < 1e-3
    assert "cannot be differentiated" in reader.notes[-1]
    with pytest.raises(TapError, match=r"cannot be read by vjp.*mode=finite_difference"):
        seen(net, "logits@gradient(mode=vjp)", batch)


def test_a_model_without_a_graph_that_is_too_wide_says_what_to_do():
    class Wide(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.detach().flatten(1)[:, :CLASSES] * 2

    batch = batch_of(torch.randn(2, 3, 64, 64))
    with pytest.raises(TapError, match="random=4,mode=finite_difference"):
        seen(Wide(), "logits@gradient", batch)
    assert seen(Wide(), "logits@gradient(random=4)", batch).shape == (2, 4, CLASSES)


def test_what_is_wrong_beside_gradients_shows_itself():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        seen(smooth(), "logits@gradient", batch_of(torch.randn(ROWS, 11)))


def test_whole_numbers_name_the_embedding():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, CLASSES))
    with pytest.raises(TapError, match=r"wrt=0"):
        seen(net, "logits@gradient", batch_of(torch.randint(0, 9, (ROWS, 3))))


class Once(torch.autograd.Function):
    """An operation whose derivative has none."""

    @staticmethod
    def forward(ctx, values):
        return values * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return Once.apply(self.fc(inputs)).tanh()


def trained_on(text: str, steps: int = 2) -> list[Step]:
    inputs = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    data = ArraySource(inputs, labels=np.arange(40) % CLASSES)
    learner = Learner(Doubled(), ["kd", match("input_gradient", text, text)])
    return list(train(learner, data, Live(smooth(), ["logits", text]), Training(steps=steps, batch=8)))


def test_an_operation_without_a_second_derivative_names_finite_differences():
    net, batch = Doubled(), batch_of(torch.randn(ROWS, 12))
    assert seen(net, "logits@gradient", batch).any(), "a teacher needs the first derivative alone"
    with pytest.raises(TapError, match=r"trained through.*mode=finite_difference"):
        trained_on("logits@gradient")
    assert len(trained_on("logits@gradient(random=2)")) == 2


def test_the_first_step_tells_by_which_mode():
    first, second = trained_on("logits@gradient(random=2)")
    assert any("is read by finite_difference" in note for note in first.notes) and not second.notes
    assert sum(note.startswith("teacher: logits@gradient(random=2") for note in first.notes) == 1


def test_a_store_keeps_by_which_mode_its_teacher_was_read(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    data, text = ArraySource(inputs, labels=np.arange(40) % CLASSES), "logits@gradient"
    store = record(Live(smooth(), ["logits", text]), data, tmp_path / "store")
    assert [note.split(" (")[0] for note in store.notes] == [f"{text} is read by vjp"]
    learner = Learner(smooth(), ["kd", match("input_gradient", text, text)])
    first = next(iter(train(learner, data, Store.open(tmp_path / "store"), Training(steps=1, batch=8))))
    assert sum(note.startswith("teacher: logits@gradient is read by vjp") for note in first.notes) == 1
    plain = Learner(smooth(), ["kd"])
    told = next(iter(train(plain, data, Store.open(tmp_path / "store"), Training(steps=1, batch=8)))).notes
    assert not told, "who does not ask for the derivative need not hear of it"


@pytest.mark.parametrize(
    "text, message",
    [
        ("logits@gradient(wrt=nothing)", "with respect to nothing that is there"),
        ("logits@gradient(wrt=convv)", "Did you mean 'conv'"),
        ("logits@gradient(wrt=unused)", "saw nothing"),
        ("logits@gradient(wrt=labels)", "no derivative by whole numbers"),
        ("logits@gradient(random=2,wrt=conv)", "not moved by hand"),
        ("logits@gradient(along=attack)", "no column to go along"),
        ("logits@gradient(along=labels)", "cannot go along its column"),
        ("pool@gradcam", None),
        ("fc@gradcam", "reads maps"),
    ],
)
def test_places_that_do_not_fit(text, message):
    net, batch = maps(), batch_of(torch.rand(ROWS, 1, 7, 7))
    net.unused = nn.Linear(1, 1)
    net.forward = lambda inputs: net.fc(net.flat(net.pool(net.act(net.conv(inputs)))))
    if message is None:
        assert seen(net, text, batch).shape == (ROWS, 1, 1)
        return
    with pytest.raises(TapError, match=message):
        seen(net, text, batch)


def test_labels_that_are_no_classes():
    net = smooth()
    for labels in (None, torch.rand(ROWS)):
        batch = {**batch_of(torch.randn(ROWS, 12)), "labels": labels}
        batch = {name: value for name, value in batch.items() if value is not None}
        with pytest.raises(TapError, match="needs the class of each row"):
            seen(net, "logits@gradient(loss)", batch)
    with pytest.raises(TapError, match="a class that this model does not have"):
        read(net, ["logits@gradient"])(batch_of(torch.randn(ROWS, 12)), {"logits": torch.eye(9)[:ROWS].flip(1)})


@pytest.mark.parametrize("mode", ["jvp", "finite_difference"])
def test_a_whole_gradient_is_trained_by_vjp_alone(mode):
    with pytest.raises(TapError, match="in training"):
        refuse_for_training(Gradient(mode=mode))  # type: ignore[arg-type]
    refuse_for_training(Gradient(along="random", count=2, mode=mode))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "logits@gradient", "logits@gradient(label)", "logits@gradient(loss,wrt=a.b)", "logits@gradient(random=4)",
        "logits@gradient(random=4,mode=jvp)",
        "logits@gradient(along=attack,step=1)", "logits@gradient(random=2,step=0.001,seed=3)", "layer3@gradcam",
        "layer3@gradcam(label)",
    ],
)  # fmt: skip
def test_taps_are_written_as_they_are_read(text):
    assert str(tap(text)) == text and isinstance(tap(text), Gradient | GradCam)


@pytest.mark.parametrize(
    "text", ["logits@gradient(best)", "logits@gradient(random=0)", "logits@gradient(top,label)", "layer@gradcam(loss)",
             "logits@gradient(along=random)", "logits@gradient(mode=fast)"]
)  # fmt: skip
def test_what_is_no_tap(text):
    with pytest.raises(TapError, match="not a tap"):
        tap(text)
