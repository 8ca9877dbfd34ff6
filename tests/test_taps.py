"""Reading a model: what is seen is what went by, and nothing of the reading stays behind."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from stillroom.contracts import Attention, Gradient, Hidden, Named, Output, State, place, tap
from stillroom.errors import ModelError, TapError
from stillroom.taps import read, sizing

ROWS = 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(inputs: Tensor, **columns: Tensor) -> dict[str, Tensor]:
    ids = torch.stack([torch.arange(len(inputs)), torch.zeros(len(inputs), dtype=torch.long)], 1)
    return {"id": ids, "inputs": inputs, **columns}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


BATCH = batch_of(drawn(ROWS, 4), labels=torch.arange(ROWS) % 3)


def left_behind(module: nn.Module) -> list[str]:
    """Hooks and replaced forwards anywhere in a module."""
    found = []
    for name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or "forward" in part.__dict__:
            found.append(name)
    return found


# --- the words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logits", Named("logits")),
        ("features", Named("features")),
        ("output", Output()),
        ("output[scores]", Output("scores")),
        ("output[1]", Output(1)),
        ("layer3", Hidden("layer3")),
        ("fc:in", Hidden("fc", "in")),
        ("encoder.layer.3[0]", Hidden("encoder.layer.3", pick=0)),
        ("shared#1", Hidden("shared", call=1)),
        ("block:in[mask]#2", Hidden("block", "in", call=2, pick="mask")),
        ("logits:out", Hidden("logits")),
        ("lstm@state", State("lstm")),
        ("lstm@state/8", State("lstm", 8)),
        ("lstm@h", State("lstm", part="h")),
        ("lstm@c/8", State("lstm", 8, "c")),
        ("mha@attention", Attention("mha")),
        ("logits@gradient", Gradient()),
        ("logits@gradient(label)", Gradient(along="label")),
        ("logits@gradient(label,wrt=pixels)", Gradient(along="label", wrt="pixels")),
    ],
)
def test_a_tap_is_read_from_its_text_and_written_back(text, expected):
    assert tap(text) == expected and tap(str(expected)) == expected and str(expected) == text


@pytest.mark.parametrize("text", ["", "a[", "a#x", "a@memory", "lstm@state/0", "logits@gradient(sideways)", "a b]"])
def test_what_is_not_a_tap_is_refused_with_the_forms_there_are(text):
    with pytest.raises(TapError, match="not a tap.*Allowed: logits, features"):
        tap(text)


def test_a_place_names_its_owner_and_its_entry():
    assert place("big/layer3") == ("big", Hidden("layer3"), "big/layer3")
    assert place("lstm@c/8") == ("", State("lstm", 8, "c"), "lstm@c")
    assert place("big/lstm@h/8") == ("big", State("lstm", part="h"), "big/lstm@h")
    assert place("lstm@state/8").key == "lstm@state/8"


# --- nothing is left behind ------------------------------------------------------------------------------------------


class Fails(nn.Module):
    """Raises after its first layer, while ``broken``."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)
        self.broken = False

    def forward(self, inputs):
        hidden, _ = self.lstm(inputs)
        if self.broken:
            raise RuntimeError("out of order")
        return self.head(hidden[:, -1])


EVERY_KIND = ["logits", "features", "lstm@state/2", "head", "head:in"]
TIMES = batch_of(drawn(ROWS, 3, 4))


def test_no_hook_remains_after_success():
    model = Fails()
    for _ in range(2):
        read(model, [*EVERY_KIND, "logits@gradient"])(TIMES)
        assert not left_behind(model)


def test_no_hook_remains_after_a_wrong_path_and_the_nearest_is_named(net):
    model = nn.Sequential()
    model.encoder, model.decoder = net, nn.Linear(3, 3)
    with pytest.raises(
        TapError, match=r"no submodule to tap: got 'encodr'\. Did you mean 'encoder'\?.*Allowed: encoder"
    ):
        read(model, ["encoder", "encodr"])
    assert not left_behind(model)


@pytest.mark.parametrize("opened", [False, True], ids=["alone", "inside with"])
@pytest.mark.parametrize("when", ["first look", "later"])
def test_no_hook_remains_after_a_model_that_raises(opened, when):
    model = Fails()
    reader = read(model, EVERY_KIND)
    if when == "later":
        reader(TIMES)
    model.broken = True
    model.train()
    with pytest.raises(RuntimeError, match="out of order"):
        if opened:
            with reader:
                reader(TIMES)
        else:
            reader(TIMES)
    assert not left_behind(model) and all(part.training for part in model.modules())
    model.broken = False
    assert set(reader(TIMES)) >= {"logits", "features", "head"}, "it can be used again"
    assert not left_behind(model)


def test_a_kind_that_does_not_fit_its_module_leaves_nothing(net):
    for wrong, message in (
        ("0@state", "memory of an nn.LSTM or nn.GRU: got Linear"),
        ("0@attention", "reads an nn.Multi"),
    ):
        with pytest.raises(TapError, match=message):
            read(net, ["4", wrong])(BATCH)
        assert not left_behind(net)


def test_hooks_held_open_are_taken_away_at_the_end(net):
    reader = read(net, ["0", "features"])
    with reader:
        first = reader(BATCH)
        assert left_behind(net)
        net.eval()
        assert set(reader(BATCH)) == set(first)
    assert not left_behind(net)


def test_a_reader_entered_twice_forgets_no_hook(net):
    reader = read(net.eval(), ["0"])
    with reader:
        with reader:
            assert len(net[0]._forward_hooks) == 1
        assert torch.equal(reader(BATCH)["0"], net[0](BATCH["inputs"]))
    assert not left_behind(net)


def test_two_readers_of_one_model_do_not_mix(net):
    net.eval()
    first, second = read(net, ["0"]), read(net, ["0", "1"])
    with first:
        assert list(second(BATCH)) == ["0", "1"] and list(first(BATCH)) == ["0"]
    assert not left_behind(net)


def test_hooks_held_open_keep_nothing_of_other_passes(net):
    reader = read(net.eval(), ["0", "4:in"])
    kept = []
    with reader:
        reader(BATCH)
        for _ in range(3):
            inputs = drawn(ROWS, 4, seed=7)
            hidden = net[0](inputs)
            kept.append(weakref.ref(hidden))
            net(inputs)
            del hidden
        gc.collect()
        assert not any(one() is not None for one in kept) and not reader._seen
        shown = reader(BATCH)
    assert torch.equal(shown["0"], net[0](BATCH["inputs"])), "other passes are not mixed in"


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_each_tap_is_what_went_by(net):
    net.eval()
    shown = read(net, ["logits", "features", "0", "1", "4:in", "output"])(BATCH)
    first = net[0](BATCH["inputs"])
    assert torch.equal(shown["0"], first) and torch.equal(shown["1"], net[1](first))
    assert torch.equal(shown["logits"], net(BATCH["inputs"])) and torch.equal(shown["output"], shown["logits"])
    assert torch.equal(shown["features"], shown["4:in"]) and torch.equal(net[4](shown["features"]), shown["logits"])
    assert list(shown) == ["logits", "features", "0", "1", "4:in", "output"]


def test_a_gradient_goes_through_a_signal(net):
    read(net, ["0"])(BATCH)["0"].sum().backward()
    assert net[0].weight.grad is not None


class OnlyWeights(nn.Module):
    """Its layer never runs by itself."""

    def __init__(self):
        super().__init__()
        self.used, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.head(inputs @ self.used.weight.T)


def test_a_path_that_never_runs_is_named():
    with pytest.raises(TapError, match=r"'used' saw nothing.*'used' \(Linear\) was never called.*before or after"):
        read(OnlyWeights(), ["used"])(BATCH)
    model = OnlyWeights()
    model.more = nn.ModuleList([nn.Linear(3, 3)])
    with pytest.raises(TapError, match="saw nothing"):
        read(model, ["more"])(BATCH)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.shared(self.shared(inputs)))


def test_a_module_that_runs_twice_must_say_which_call():
    model = Twice()
    with pytest.raises(TapError, match="runs 2 times.*Allowed: shared#0, shared#1"):
        read(model, ["shared"])(BATCH)
    with pytest.raises(TapError, match="runs 2 times in one pass: got call 2"):
        read(model, ["shared#2"])(BATCH)
    shown = read(model, ["shared#0", "shared#1", "shared:in#1"])(BATCH)
    assert torch.equal(shown["shared#1"], model.shared(shown["shared#0"]))
    assert torch.equal(shown["shared:in#1"], shown["shared#0"])
    assert not left_behind(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_an_in_place_activation_behind_the_tap_does_not_reach_it(training, frozen):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).train(training)
    reader = read(model, ["0", "1"])
    with torch.set_grad_enabled(not frozen):
        for _ in range(2):
            shown = reader(BATCH)
            assert torch.equal(shown["0"], model[0](BATCH["inputs"])) and (shown["0"] < 0).any()
            assert torch.equal(shown["1"], shown["0"].clamp(min=0))
    if not frozen:
        (shown["0"].sum() + shown["1"].sum()).backward()


def test_what_is_overwritten_in_training_only_is_refused():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, inputs):
            hidden = self.first(inputs)
            return self.head(hidden.mul_(2) if self.training else hidden)

    model = Sometimes().train()
    with pytest.raises(TapError, match=r"'first' saw was overwritten in place.*inplace=False"):
        read(model, ["first"])(BATCH)


# --- outputs of every form -------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Gives its logits in the form asked for."""

    def __init__(self, form):
        super().__init__()
        self.form, self.body, self.head = form, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.body(inputs)
        return self.form(hidden, self.head(hidden))


Named2 = namedtuple("Named2", ["hidden", "logits"])
FORMS = {
    "tensor": lambda hidden, logits: logits,
    "dictionary": lambda hidden, logits: {"hidden": hidden, "logits": logits},
    "only 2-D": lambda hidden, logits: {"maps": hidden[:, :, None], "answer": logits},
    "tuple": lambda hidden, logits: (hidden[:, None], logits),
    "list": lambda hidden, logits: [logits, hidden[None], logits.argmax(1)],
    "attribute": lambda hidden, logits: SimpleNamespace(hidden=hidden, logits=logits),
    "namedtuple": Named2,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found_by_rule(form):
    model = Answers(FORMS[form])
    shown = read(model, ["logits", "features"])(BATCH)
    assert torch.equal(shown["logits"], model.head(model.body(BATCH["inputs"])))
    assert torch.equal(shown["features"], model.body(BATCH["inputs"]))


def test_two_candidates_are_one_too_many():
    model = Answers(lambda hidden, logits: (hidden, logits))
    with pytest.raises(TapError, match=r"Cannot tell.*logits: got tuple \(0: \(5, 6\), 1: \(5, 3\)\).*'output\[0\]'"):
        read(model, ["logits"])(BATCH)
    shown = read(model, ["output[1]", "output[0]"])(BATCH)
    assert torch.equal(shown["output[1]"], model.head(shown["output[0]"]))
    with pytest.raises(TapError, match="no tensors"):
        read(Answers(lambda hidden, logits: "nothing"), ["logits"])(BATCH)


def test_features_need_one_layer_that_makes_the_logits():
    model = Answers(lambda hidden, logits: logits * 2)
    with pytest.raises(TapError, match="Cannot tell which layer.*got 0 candidates.*body, head"):
        read(model, ["features"])(BATCH)
    assert not left_behind(model)


def test_parts_are_picked_and_missing_ones_are_named():
    model = nn.Sequential(Answers(FORMS["dictionary"]), Answers(lambda hidden, logits: logits))
    model[1].forward = lambda inputs: inputs["logits"]  # type: ignore[method-assign]
    assert read(model, ["0[hidden]"])(BATCH)["0[hidden]"].shape == (ROWS, 6)
    with pytest.raises(TapError, match=r"'0\[hiden\]' gave a dictionary without that part.*Did you mean 'hidden'"):
        read(model, ["0[hiden]"])(BATCH)
    with pytest.raises(TapError, match=r"'0' gave a dictionary, not a tensor\. Parts: hidden, logits.*'0\[hidden\]'"):
        read(model, ["0"])(BATCH)
    pair = Answers(lambda hidden, logits: (hidden, logits))
    with pytest.raises(TapError, match=r"gave 2 parts: got \[4\]\. Allowed: 0 to 1"):
        read(pair, ["output[4]"])(BATCH)
    with pytest.raises(TapError, match=r"'output' gave a tuple of 2 parts.*'output\[0\]'"):
        read(pair, ["output"])(BATCH)


def test_rows_of_unequal_length_are_padded_with_a_mask():
    class Boxes(nn.Module):
        def forward(self, inputs):
            return [{"box": row.repeat(count, 1), "score": row[:1].repeat(count)} for count, row in enumerate(inputs)]

    shown = read(Boxes(), ["output[box]", "output[score]"])(BATCH)
    assert shown["output[box]"].shape == (ROWS, ROWS - 1, 4)
    assert shown["output[box].mask"].sum(1).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(shown["output[box]"][3, 2], BATCH["inputs"][3]) and not shown["output[box]"][1, 1:].any()


# --- columns and encoding --------------------------------------------------------------------------------------------


def test_columns_are_taken_by_position_by_name_and_through_an_encoder():
    class Both(nn.Module):
        def forward(self, left, right):
            return left - 2 * right

    a, b = drawn(ROWS, 3), drawn(ROWS, 3, seed=1)
    batch = batch_of(a, other=b)
    expected = a - 2 * b
    for takes, encode in (
        (("inputs", "other"), None),
        ({"right": "other", "left": "inputs"}, None),
        (("inputs", "other"), lambda left, right: (left, right)),
        (("inputs", "other"), lambda left, right: {"right": right, "left": left}),
        (("inputs", "other"), lambda left, right: left),
    ):
        assert torch.equal(read(Both(), ["logits"], encode, takes=takes)(batch)["logits"], expected)
    with pytest.raises(
        ModelError, match="takes a column that the batch does not have: got otherr.*Did you mean 'other'"
    ):
        read(Both(), ["logits"], takes=("inputs", "otherr"))(batch)


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_weights_are_seen_and_the_answer_stays():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mha, self.head = attention, nn.Linear(8, 3)

        def forward(self, inputs):
            return self.head(self.mha(inputs, inputs, inputs, need_weights=False)[0].mean(1))

    model, batch = Model(), batch_of(drawn(ROWS, 6, 8))
    shown = read(model, ["mha@attention", "logits"])(batch)
    _, weights = attention(batch["inputs"], batch["inputs"], batch["inputs"], average_attn_weights=False)
    assert torch.allclose(shown["mha@attention"], weights, atol=1e-6) and weights.shape == (ROWS, 2, 6, 6)
    assert torch.allclose(shown["logits"], model(batch["inputs"]), atol=1e-6)
    assert not left_behind(model)


@pytest.mark.parametrize("training", [True, False])
def test_attention_of_a_transformer_whose_fast_path_hides_it(training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, inputs):
            return self.head(self.encoder(inputs).mean(1))

    model, batch = Model().train(training), batch_of(drawn(ROWS, 6, 8))
    reader = read(model, ["logits", "encoder.layers.0.self_attn@attention", "encoder.layers.1.self_attn@attention"])
    with torch.no_grad():
        plain = model(batch["inputs"])
        shown = reader(batch)
        assert torch.allclose(model(batch["inputs"]), plain)
    for index in range(2):
        weights = shown[f"encoder.layers.{index}.self_attn@attention"]
        assert weights.shape == (ROWS, 2, 6, 6) and torch.allclose(weights.sum(-1), torch.ones(ROWS, 2, 6), atol=1e-5)
    first = model.encoder.layers[0].self_attn
    expected = first(batch["inputs"], batch["inputs"], batch["inputs"], average_attn_weights=False)[1]
    assert torch.allclose(shown["encoder.layers.0.self_attn@attention"], expected, atol=1e-6)
    assert torch.allclose(shown["logits"], plain, atol=1e-5) and not left_behind(model)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_a_gradient_is_that_of_autograd(net, frozen):
    net.eval()
    inputs = BATCH["inputs"].clone().requires_grad_()
    logits = net(inputs)
    for text, classes in (("logits@gradient", logits.argmax(1)), ("logits@gradient(label)", BATCH["labels"])):
        chosen = logits.gather(1, classes[:, None]).sum()
        expected = torch.autograd.grad(chosen, inputs, retain_graph=True)[0]
        with torch.set_grad_enabled(not frozen):
            shown = read(net, [text, "logits", "0"])(BATCH)
        assert torch.allclose(shown[text], expected, atol=1e-6)
        assert shown[text].requires_grad is not frozen and shown["logits"].requires_grad is not frozen
        assert torch.allclose(shown["0"], net[0](BATCH["inputs"]), atol=1e-6)
    assert not BATCH["inputs"].requires_grad


def test_the_student_follows_the_teachers_class(net):
    net.eval()
    other = torch.eye(3)[(net(BATCH["inputs"]).argmax(1) + 1) % 3]
    inputs = BATCH["inputs"].clone().requires_grad_()
    expected = torch.autograd.grad(net(inputs).gather(1, other.argmax(1)[:, None]).sum(), inputs)[0]
    shown = read(net, ["logits@gradient"])(BATCH, {"logits": other})
    assert torch.allclose(shown["logits@gradient"], expected, atol=1e-6)


def test_a_gradient_loss_reaches_the_weights(net):
    net.eval()
    read(net, ["logits@gradient"])(BATCH)["logits@gradient"].square().sum().backward()
    assert net[0].weight.grad.abs().max() > 0


def test_a_gradient_needs_its_column_and_its_labels(net):
    with pytest.raises(TapError, match="respect to nothing that is there.*got 'pixels'.*id, inputs, labels"):
        read(net, ["logits@gradient(wrt=pixels)"])(BATCH)
    with pytest.raises(TapError, match="needs the class of each row.*without labels"):
        read(net, ["logits@gradient(label)"])({"id": BATCH["id"], "inputs": BATCH["inputs"]})


def test_pixels_of_whole_numbers_have_gradients_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    pixels = torch.randint(0, 256, (ROWS, 1, 2, 2), dtype=torch.uint8)
    shown = read(model, ["logits@gradient"], lambda values: values.float() / 255)(batch_of(pixels))
    top = model(pixels.float() / 255).argmax(1)
    assert torch.allclose(shown["logits@gradient"].flatten(1), model[1].weight[top] / 255, atol=1e-6)


# --- wrappers and sizing ---------------------------------------------------------------------------------------------


def test_a_compiled_model_is_read_as_what_it_wraps(net):
    compiled = torch.compile(net)
    reader = read(compiled, ["0", "features"])
    assert reader.module is net
    assert torch.equal(reader(BATCH)["0"], net[0](BATCH["inputs"]))


def test_peers_answer_together():
    peers = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 2)})
    shown = read(peers, ["output[a]", "output[b]", "b:in"])(BATCH)
    assert torch.equal(shown["output[a]"], peers["a"](BATCH["inputs"])) and shown["output[b]"].shape == (ROWS, 2)


def test_a_first_look_leaves_statistics_modes_and_generators_as_they_were(net):
    net.train()
    net[3].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, state = [part.training for part in net.modules()], torch.random.get_rng_state()
    read(net, ["features", "0"]).prepare(BATCH)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_sizing_gives_everything_back_even_after_an_error(net):
    net.train()
    net[1].eval()
    modes, state = [part.training for part in net.modules()], torch.random.get_rng_state()
    with pytest.raises(ValueError, match="stop"), sizing(net):
        assert not any(part.training for part in net.modules()) and not torch.is_grad_enabled()
        torch.rand(3)
        raise ValueError("stop")
    assert [part.training for part in net.modules()] == modes and torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_skipped_is_not_shown(net):
    shown = read(net, ["logits", "0", "logits@gradient"])(BATCH, skip=[tap("0"), tap("logits@gradient")])
    assert list(shown) == ["logits"]


def test_a_model_under_inference_mode_is_read_too(net):
    with torch.inference_mode():
        assert set(read(net.eval(), ["0", "features", "logits"])(BATCH)) == {"0", "features", "logits"}
