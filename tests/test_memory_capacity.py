"""Memory capacity against memories whose content is known: shift registers, networks that forget, noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.errors import DataError, TapError
from stillroom.memory import (
    Remembers,
    capacity,
    findings,
    headline,
    memory_of,
    recalled,
    recurrent_path,
    state_r2,
)
from stillroom.memory.capacity import MOST
from stillroom.memory.probes import steps_of
from stillroom.models.encode import ImageEncode
from stillroom.models.text_encode import HuggingFaceEncode, WordEncode
from stillroom.report.figures import draw
from stillroom.report.svg import slots
from stillroom.taps import read
from stillroom.utf8 import pack


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Reads(nn.Module):
    """A memory and a head: sequences (B, T, F), or images read row by row."""

    def __init__(self, memory, only=None):
        super().__init__()
        self.memory, self.only = memory, only
        self.head = nn.Linear(memory.hidden_size * (2 if memory.bidirectional else 1), 2)

    def forward(self, inputs):
        values = inputs.squeeze(1) if inputs.dim() == 4 else inputs
        if self.only is not None and values.shape[1] != self.only:
            raise ValueError("another length")
        return self.head(self.memory(values)[0][:, -1])


def lstm(hidden=16, features=1, seed=0, **options):
    torch.manual_seed(seed)
    return Reads(nn.LSTM(features, hidden, batch_first=True, **options))


def register(gru, suffix="_l0", scale=0.1):
    """Make a GRU a shift register: the update gate shut, the reset gate open, tanh nearly straight near nought."""
    size = gru.hidden_size
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{name}{suffix}").zero_()
        bias = getattr(gru, f"bias_ih{suffix}")
        bias[:size] = 20.0
        bias[size : 2 * size] = -20.0
        getattr(gru, f"weight_ih{suffix}")[2 * size, 0] = scale
        for unit in range(1, size):
            getattr(gru, f"weight_hh{suffix}")[2 * size + unit, unit - 1] = 1.0
    return gru


def forgets(memory, suffix="_l0"):
    """Cut every way from one step to the next, but not from the input."""
    with torch.no_grad():
        getattr(memory, f"weight_hh{suffix}").zero_()
        gates = getattr(memory, f"bias_ih{suffix}")
        size = memory.hidden_size
        if isinstance(memory, nn.LSTM):
            gates[size : 2 * size] = -30.0
            getattr(memory, f"weight_ih{suffix}")[size : 2 * size] = 0.0
        else:
            gates[size : 2 * size] = -30.0
            getattr(memory, f"weight_ih{suffix}")[size : 2 * size] = 0.0
    return memory


def independent(rows=200, steps=60, features=1, seed=0):
    return torch.rand(rows, steps, features, generator=torch.Generator().manual_seed(seed)) - 0.5


def smooth(rows=256, steps=90, seed=0):
    noise = torch.randn(rows, 1, steps + 14, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool1d(noise, 15, 1).transpose(1, 2)


# --- known memories ------------------------------------------------------------------------------------


def test_a_shift_register_remembers_its_length_and_nothing_beyond():
    found = capacity(Reads(register(nn.GRU(1, 6, batch_first=True))), "memory", independent(), reach=12)
    assert min(found.curve[:6]) > 0.98 and max(found.curve[6:]) < 0.02
    assert found.depth == 5
    assert 5.9 < found.total <= 6.0 + 0.05 and found.units == 6 and found.targets == 1
    assert found.chance < 0.05 and found.steps == 36 and len(found.curve) == 13


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_memory_that_is_cut_knows_the_present_only(kind):
    found = capacity(Reads(forgets(kind(1, 16, batch_first=True))), "memory", independent(), reach=10)
    assert found.curve[0] > 0.99 and max(found.curve[1:]) < 0.01 and found.depth == 0


def test_a_state_of_noise_remembers_nothing():
    noise, numbers = np.random.default_rng(0), np.random.default_rng(1)
    found = recalled(noise.normal(size=(256, 90, 16)), numbers.normal(size=(256, 90, 1)), 30)
    assert found.total < 0.05 and found.chance < 0.05 and found.depth == -1
    shifted = numbers.normal(size=(256, 90, 1))
    twin = recalled(np.concatenate([np.roll(shifted, k, 1) for k in range(4)], 2), shifted, 30)
    assert 3.95 < twin.total < 4.0, "the same probe finds what is there"


def test_a_network_trained_to_recall_remembers_more_at_that_step_back():
    model, delay = lstm(12), 5
    before = capacity(model, "memory", independent(), reach=12)
    reader = nn.Linear(12, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *reader.parameters()], lr=1e-2)
    for step in range(250):
        inputs = independent(64, 24, seed=step + 1)
        loss = (reader(model.memory(inputs)[0])[:, delay:] - inputs[:, :-delay]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = capacity(model, "memory", independent(), reach=12)
    assert after.curve[delay] > before.curve[delay] + 0.3
    assert after.total > before.total + 1.0 and after.total <= 12.0


@pytest.mark.parametrize("seed", [0, 1])
def test_smooth_inputs_fake_memory_and_shuffling_them_ends_it(seed):
    model, inputs = lstm(seed=seed), smooth()
    honest = capacity(model, "memory", inputs)
    states = read(model, ["memory@state"])({"id": torch.zeros(256, 2, dtype=torch.int64), "inputs": inputs})
    plain = states["memory@h"].detach().flatten(2).double().numpy()
    faked = recalled(plain, (inputs / inputs.std()).double().numpy(), 30)
    assert 2.0 < honest.total < 4.5, "an untrained LSTM of 16 units remembers two or three steps"
    assert faked.total > 2.5 * honest.total


@pytest.mark.parametrize("features", [1, 3, 9])
def test_no_memory_holds_more_numbers_than_it_has_units(features):
    for seed in range(2):
        model = Reads(nn.GRU(features, 4, batch_first=True, num_layers=2))
        correlated = independent(features=features) @ torch.randn(features, features)
        found = capacity(model, "memory", correlated, reach=15, seed=seed)
        assert found.units == 8 and found.targets == min(features, 4)
        assert 0 < found.total < 8.1


def test_only_forward_directions_count_as_steps_back():
    memory = nn.GRU(1, 6, batch_first=True, bidirectional=True)
    forgets(register(memory, "_l0_reverse"))
    found = capacity(Reads(memory), "memory", independent(), reach=8)
    assert found.units == 6 and max(found.curve[1:]) < 0.01
    register(memory)
    forgets(memory, "_l0_reverse")
    assert capacity(Reads(memory), "memory", independent(), reach=8).total > 5.8


def test_cells_are_read_on_demand():
    model = lstm(8, num_layers=2)
    plain, both = (capacity(model, "memory", independent(), reach=10, cells=cells) for cells in (False, True))
    assert (plain.units, both.units) == (16, 32) and both.total > plain.total


def test_the_measure_is_a_function_of_its_seed_and_leaves_the_network_alone():
    model = lstm(8).train()
    before, drawn = [one.clone() for one in model.state_dict().values()], torch.get_rng_state()
    one, two, other = (capacity(model, "memory", independent(), reach=10, seed=seed) for seed in (0, 0, 1))
    assert one == two != other and abs(one.total - other.total) < 0.3
    assert model.training and "forward" not in model.memory.__dict__ and not model._forward_hooks
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(map(torch.equal, before, model.state_dict().values()))


# --- kinds of input ------------------------------------------------------------------------------------


def test_images_are_shuffled_row_by_row_after_encode():
    pixels = torch.randint(0, 256, (64, 1, 20, 5), dtype=torch.uint8)
    encode = ImageEncode([0.5], [0.25])
    memory = register(nn.GRU(5, 4, batch_first=True), scale=0.02)
    with torch.no_grad():
        memory.weight_ih_l0[8, 1:] = 0.02
    found = capacity(Reads(memory), "memory", pixels, encode=encode, reach=8)
    assert found.targets == 4 and found.kind == "numbers" and found.units == 4
    steps = steps_of(pixels, encode)
    rows, targets = steps.rows(10, 24, 0)
    assert rows.shape == (10, 1, 24, 5) and targets.shape == (10, 24, 4)
    known = {tuple(row) for row in encode(pixels).flatten(0, 2).tolist()}
    assert {tuple(row) for row in rows.transpose(1, 2).flatten(0, 1).flatten(1).tolist()} <= known
    # one sum of five pixels at each of four steps: what four whitened directions hold of it, four times
    assert 2.0 < found.total < 4.05 and max(found.curve[4:]) < 0.02


def test_a_network_that_takes_one_length_only_keeps_it():
    model = Reads(nn.GRU(1, 6, batch_first=True), only=20)
    found = capacity(model, "memory", independent(steps=20), reach=30)
    assert found.steps == 20 and len(found.curve) == 11
    free = Reads(nn.GRU(1, 6, batch_first=True))
    assert capacity(free, "memory", independent(steps=20), reach=30, length=24).steps == 24


def test_networks_set_side_by_side_are_asked_alike():
    only = Remembers(Reads(nn.GRU(1, 6, batch_first=True), only=20))
    found = memory_of({"teacher": [only], "alone": registers(4, 2)}, independent(steps=20), reach=30, rows=64)
    assert {one["steps"] for one in found["models"].values()} == {20} == {found["steps"]}
    assert {len(one["curves"][0]) for one in found["models"].values()} == {11}


def test_plain_rows_of_numbers_are_steps_of_one_number():
    class Flat(Reads):
        def forward(self, inputs):
            return super().forward(inputs[..., None])

    found = capacity(Flat(register(nn.GRU(1, 4, batch_first=True))), "memory", independent()[..., 0], reach=8)
    assert 3.9 < found.total < 4.05


class Letters(nn.Module):
    """An encode of texts: a mark, then each byte a token; with steps."""

    def forward(self, inputs):
        ids = torch.cat([torch.ones_like(inputs[:, :1]), inputs], 1).long()
        return {"ids": ids, "mask": ids > 0}

    def steps(self, inputs):
        mask = self(inputs)["mask"]
        ends = torch.arange(mask.shape[1], dtype=torch.int32) * mask
        return mask, torch.stack([(ends - 1).clamp(min=0), ends], 2)


class TextReads(nn.Module):
    def __init__(self, memory, words=30):
        super().__init__()
        self.embed = nn.Embedding(words, memory.input_size)
        self.memory = memory
        self.seen = []

    def forward(self, ids, mask):
        self.seen.append((ids, mask))
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), mask.sum(1), True, enforce_sorted=False)
        return self.memory(packed)[1][-1].squeeze(0)


def texts(rows=100):
    lengths = torch.randint(1, 13, (rows, 1))
    letters = (torch.rand(rows, 12) ** 2 * 20).to(torch.uint8) + 5
    return letters * (torch.arange(12) < lengths)


def test_tokens_are_shuffled_among_the_real_ones():
    model = TextReads(nn.GRU(8, 32, batch_first=True))
    found = capacity(model, "memory", texts(), encode=Letters(), reach=10)
    assert found.kind == "tokens" and found.targets == 8 and found.units == 32 and found.steps == 30
    assert found.curve[0] > 0.5 > found.curve[10] and found.total < 32
    ids, mask = model.seen[-1]
    assert bool(mask.all()) and ids.shape[1] == 30 and int(ids.min()) >= 5, "no padding, no mark"
    cut = TextReads(forgets(nn.GRU(8, 32, batch_first=True)))
    forgot = capacity(cut, "memory", texts(), encode=Letters(), reach=10)
    assert forgot.curve[0] > 0.5 and max(forgot.curve[1:]) < 0.02


def test_words_and_a_tokenizers_pieces_can_be_asked():
    tokenizers = pytest.importorskip("tokenizers")
    raw = [" ".join("abcdefghij"[place] for place in row) for row in (torch.rand(80, 9) ** 2 * 10).long().tolist()]
    words = WordEncode(list("abcdefghij"))
    marks = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(marks | {one: 4 + n for n, one in enumerate("abcdefghij")}, unk_token="[UNK]")
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pieces.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    for encode, smallest in ((words, 2), (HuggingFaceEncode(pieces, longest=16), 4)):
        steps = steps_of(pack(raw), encode)
        rows, targets = steps.rows(20, 30, 0)
        assert steps.kind == "tokens" and len(steps.pool) == 80 * 9 and int(rows.min()) == smallest
        assert np.allclose(np.cov(steps.targets.T, bias=True), np.eye(targets.shape[2]), atol=1e-6)
        given = steps.encode(rows)
        assert all(one.shape == (20, 30) and bool((one > 0).all()) for one in given.values())
    found = memory_of({"alone": [Remembers(TextReads(nn.GRU(8, 16, batch_first=True)), words)]}, pack(raw), reach=5)
    assert found["models"]["alone"]["kind"] == "tokens" and found["steps"] == 15


def test_ids_without_an_encode_are_tokens_too():
    class Ids(TextReads):
        def forward(self, inputs):
            return super().forward(inputs, torch.ones_like(inputs))

    ids = torch.randint(0, 30, (50, 15))
    assert capacity(Ids(nn.GRU(8, 16, batch_first=True)), "memory", ids, reach=5).kind == "tokens"


# --- what cannot be measured ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        (torch.ones(10, 20, 1), {}, "same at every step"),
        (torch.zeros(0, 20, 1), {}, "without a step"),
        (torch.rand(10, 1, 1), {"only": 1}, "no past"),
        (torch.rand(10, 20, 1), {"reach": 0}, "reach"),
        (torch.rand(10, 20, 1), {"rows": 2}, "rows"),
        (torch.rand(10, 20, 1), {"length": 1}, "of 1"),
        (torch.rand(10), {}, "not measured on such inputs"),
    ],
)
def test_what_has_no_memory_to_measure_is_said(inputs, options, said):
    only = options.pop("only", None)
    with pytest.raises(DataError, match=said):
        capacity(Reads(nn.GRU(1, 4, batch_first=True), only), "memory", inputs, **options)


def test_a_place_without_memory_and_a_shortened_time_are_said():
    with pytest.raises(TapError, match=r"nn\.LSTM or nn\.GRU"):
        capacity(lstm(), "head", independent())

    class Halved(Reads):
        def forward(self, inputs):
            return super().forward(inputs[:, ::2])

    halved = Halved(nn.GRU(1, 4, batch_first=True))
    with pytest.raises(DataError, match="does not keep the input's time"):
        capacity(halved, "memory", independent())
    found = memory_of({"alone": registers(4, 2), "halved": [Remembers(halved)]}, independent(), reach=8, rows=64)
    assert list(found["models"]) == ["alone"] and "does not keep" in found["left_out"]["halved"]
    assert "'halved' was not asked" in findings(found)[1].figure["note"]
    assert memory_of({"halved": [Remembers(halved)]}, independent()) is None
    with pytest.raises(DataError, match="reach 0"):
        memory_of({"alone": registers(4, 1)}, independent(), reach=0)


def test_the_memory_of_a_network_is_found():
    assert recurrent_path(lstm()) == "memory"
    assert recurrent_path(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GRU(2, 2)))) == "1.0"
    assert recurrent_path(nn.Linear(2, 2)) is None


# --- the student's state beside the teacher's ------------------------------------------------------------


def test_state_r2_beside_what_so_few_numbers_can_hold():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60, 20, 3))
    teacher = hidden @ random.normal(size=(3, 12)) + 0.3 * random.normal(size=(60, 20, 12))
    good = state_r2(hidden @ random.normal(size=(3, 3)), teacher)
    assert good.units == 3 and good.of == 12 and 0.95 < good.ratio < 1.02 and 0.8 < good.r2 < 1
    poor = state_r2(random.normal(size=(60, 20, 3)), teacher)
    assert abs(poor.r2) < 0.02 and poor.ceiling == good.ceiling
    part = state_r2(hidden[..., :1], teacher)
    assert 0.1 < part.r2 < part.ceiling < good.ceiling
    with pytest.raises(DataError, match="cannot be compared"):
        state_r2(hidden[:, :10], teacher)


def test_state_r2_leaves_padding_out():
    random = np.random.default_rng(0)
    hidden = random.normal(size=(60, 20, 3))
    mask = np.arange(20) < random.integers(5, 20, size=(60, 1))
    teacher = hidden @ random.normal(size=(3, 6))
    spoilt = np.where(mask[..., None], teacher, 1e3 * random.normal(size=teacher.shape))
    assert state_r2(torch.from_numpy(hidden), torch.from_numpy(spoilt), mask).r2 > 0.999
    assert state_r2(hidden, spoilt).r2 < 0.1


# --- all networks of a run -------------------------------------------------------------------------------


def registers(size, seeds):
    return [
        Remembers(Reads(register(nn.GRU(1, size, batch_first=True), scale=0.1 + seed / 100))) for seed in range(seeds)
    ]


def asked(main, alone, seeds=5, **others):
    models = {
        "teacher": [Remembers(Reads(register(nn.GRU(1, 12, batch_first=True))))],
        "alone": registers(alone, seeds),
        "distilled": registers(main, seeds),
        "random weights": [Remembers(Reads(nn.GRU(1, 6, batch_first=True)))],
        **others,
    }
    found = memory_of(models, independent(), reach=14, rows=128)
    return json.loads(json.dumps(found))


def test_memory_that_was_passed_on_is_said_with_its_numbers():
    found = asked(6, 4, kd=registers(5, 5), cnn=[Remembers(nn.Linear(1, 2))])
    assert "cnn" not in found["models"] and len(found["models"]["alone"]["totals"]) == 5
    assert "state" not in found["models"]["teacher"]
    assert all(0.4 < fit["ratio"] <= 1.01 for fit in found["models"]["distilled"]["state"])
    curve, totals = findings(found)
    assert curve.title == "Was memory passed on?"
    assert "remembers 6.0 numbers" in curve.sentence and "remembers 4.0 (the teacher 12.0" in curve.sentence
    assert "Memory was passed on." in curve.sentence and "'kd' remembers most, 5.0: 1.0 less" in curve.sentence
    assert 1.9 < curve.number < 2.1 and "random weights" in curve.control
    assert "not yet answering better" in curve.sentence
    assert [one["name"] for one in curve.figure["series"]] == ["teacher", "alone", "distilled", "kd", "random weights"]
    assert curve.figure["series"][0]["x"] == list(range(15)), "the teacher's twelve, and where it ends"
    assert "low" in curve.figure["series"][1] and "low" not in curve.figure["series"][0]
    assert totals.figure["rows"][2][:2] == ["distilled", 6] and totals.figure["main"] == [2]
    for one in (curve, totals):
        assert draw(one.figure, slots(["teacher", "alone", "distilled", "kd", "random weights"]))
    assert headline(found) in curve.sentence


@pytest.mark.parametrize(
    ("main", "alone", "seeds", "said"),
    [
        (4, 6, 5, "Memory was not passed on; some was lost"),
        (5, 5, 5, "only a wider student"),
        (6, 4, 3, "5 seeds are needed"),
        (6, 4, 1, "one seed, so chance"),
        (13, 13, 2, "no memory to pass on"),
    ],
)
def test_what_did_not_work_is_said_as_plainly(main, alone, seeds, said):
    found = asked(main, alone, seeds)
    text = findings(found)[0].sentence
    assert said in text, text
    if said != "5 seeds are needed":
        assert "Memory was passed on" not in text


def test_a_difference_that_may_be_chance_is_not_called_memory():
    found = asked(6, 4)
    for name, totals in (("alone", [2.0, 2.2, 2.1, 1.9, 2.0]), ("distilled", [2.1, 2.0, 2.3, 1.8, 2.0])):
        found["models"][name] |= {"totals": totals, "units": 16}
    assert "is not shown" in findings(found)[0].sentence


def test_random_weights_that_hold_more_are_named_beside_the_claim():
    found = asked(6, 4)
    assert "Random weights hold more" not in findings(found)[0].sentence
    found["models"]["random weights"] |= {"totals": [9.0] * 5}
    sentence = findings(found)[0].sentence
    assert "Memory was passed on." in sentence and "Random weights hold more" in sentence


def test_a_foreign_network_that_breaks_on_probes_does_not_end_the_report():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.GRU(1, 3, batch_first=True)

        def forward(self, inputs):
            raise RuntimeError("a shape of my own\nand more")

    found = memory_of({"alone": registers(4, 1), "odd": [Remembers(Fragile())]}, independent(), reach=8, rows=64)
    assert list(found["models"]) == ["alone"] and found["left_out"] == {"odd": "a shape of my own"}


def test_a_lead_of_a_hair_is_not_sold_as_memory():
    found = asked(6, 4)
    for name, totals in (("alone", [2.0, 2.2, 2.1, 1.9, 2.0]), ("distilled", [2.03, 2.22, 2.13, 1.93, 2.03])):
        found["models"][name]["totals"] = totals
        found["models"][name]["units"] = 16
    sentence = findings(found)[0].sentence
    assert "too small to be of use" in sentence and "Memory was passed on" not in sentence


def test_without_control_or_memory_the_rest_is_still_said():
    found = memory_of({"teacher": registers(6, 1), "distilled": registers(4, 2)}, independent(), reach=8, rows=64)
    curve, totals = findings(found)
    assert curve.number is None and "distilled remembers 4.0 numbers" in curve.sentence and headline(found) == ""
    assert "4 units hold" in totals.sentence
    del found["models"]["teacher"], found["models"]["distilled"]["state"]
    assert "teacher" not in findings(found)[1].sentence, "a teacher without a memory has no steps to differ in"
    assert draw(curve.figure, slots(["teacher", "distilled"]))
    assert memory_of({"distilled": [Remembers(nn.Linear(1, 1))]}, independent()) is None


def test_text_models_are_compared_step_by_step():
    models = {
        "teacher": [Remembers(TextReads(nn.LSTM(8, 24, batch_first=True)), Letters())],
        "alone": [Remembers(TextReads(nn.GRU(8, 6, batch_first=True, bidirectional=True)), Letters())],
    }
    found = memory_of(models, texts(), reach=6, rows=64)
    held = found["models"]["alone"]
    assert held["kind"] == "tokens" and held["units"] == 6
    assert 0 < held["state"][0]["r2"] < held["state"][0]["ceiling"] <= 1


def test_it_takes_seconds():
    import time

    models = {name: [Remembers(lstm(size, 28))] for name, size in (("teacher", 128), ("a", 128), ("b", 16), ("c", 16))}
    start = time.process_time()
    memory_of(models, torch.rand(MOST + 100, 28, 28))
    assert time.process_time() - start < 5
