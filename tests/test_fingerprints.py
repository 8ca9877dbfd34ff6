"""A fingerprint changes with whatever changes the answers, and with nothing else; what is hidden has none."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import functools
import logging
import re
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.errors import ModelError
from stillroom.fingerprints import fingerprint_of, fingerprint_or_new, unseen_in
from stillroom.losses import kd
from stillroom.models.zoo import build
from stillroom.tensors import copy_of, count_parameters, shared_tensors

LOG = logging.getLogger(__name__)
FACTOR, TABLE = 2.0, [1.0, 2.0]


def a_net(slope: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(slope), nn.Flatten(), nn.Linear(16, 2))


class Holds(nn.Module):
    """A network with one attribute of its own."""

    fingerprint_ignores = ("calls",)

    def __init__(self, value: object = None) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        LOG.debug("called")
        self.calls += 1
        return x


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Options:
    scale: float = 1.0
    names: list[str] = dataclasses.field(default_factory=list)


class Plain:
    __slots__ = ("kept",)

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def times(self, x: float) -> float:
        return x * FACTOR


Pair = collections.namedtuple("Pair", "first second")


def closed(factor: object):
    return lambda x: x * factor


def one(x: torch.Tensor, *, power: float = 2.0) -> torch.Tensor:
    return x**power


def other(x: torch.Tensor, *, power: float = 3.0) -> torch.Tensor:
    return x**power


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return one(x)


class Changed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return other(x)


class ReadsGlobal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * TABLE[0]


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return one(x)


class DecoratedOtherwise(nn.Module):
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return other(x)


# --- modules -------------------------------------------------------------------------------------------


def test_the_same_network_has_the_same_fingerprint_however_it_lies_in_memory():
    wanted = fingerprint_of(a_net())
    assert len(wanted) == 64 and int(wanted, 16)
    assert fingerprint_of(a_net().to(memory_format=torch.channels_last)) == wanted
    assert fingerprint_of(a_net().eval().requires_grad_(False)) == wanted
    assert fingerprint_of(copy.deepcopy(a_net())) == wanted
    assert fingerprint_of(torch.compile(a_net())) == wanted
    assert fingerprint_of(nn.Sequential(torch.compile(a_net()))) == fingerprint_of(nn.Sequential(a_net()))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[4].weight.data[0, 0].add_(1e-6),
        lambda net: net[1].running_mean.add_(1),
        lambda net: net[1].num_batches_tracked.add_(1),
        lambda net: net.register_buffer("table", torch.ones(2), persistent=False),
        lambda net: net.bfloat16(),
        lambda net: setattr(net[2], "negative_slope", 0.2),
        lambda net: setattr(net[4], "scale", -5),
        lambda net: net[0].register_forward_hook(lambda module, given, answer: -answer),
        lambda net: setattr(net, "forward", types.MethodType(lambda self, x: x, net)),
        lambda net: setattr(net[4], "bias", None),
    ],
)
def test_what_changes_the_answers_changes_the_fingerprint(change):
    net = a_net()
    with torch.no_grad():
        change(net)
    assert fingerprint_of(net) not in (None, fingerprint_of(a_net()))


def test_a_hook_that_was_removed_counts_no_more():
    net = a_net()
    net[0].register_forward_hook(lambda module, given, answer: -answer).remove()
    assert fingerprint_of(net) == fingerprint_of(a_net())


def test_a_buffer_that_checkpoints_leave_out_is_read():
    first, second = a_net(), a_net()
    first.register_buffer("table", torch.zeros(2), persistent=False)
    second.register_buffer("table", torch.ones(2), persistent=False)
    assert fingerprint_of(first) != fingerprint_of(second)


def test_swapped_names_and_tied_weights_are_other_networks():
    first = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    second = nn.ModuleDict({"a": first["b"], "b": first["a"]})
    assert fingerprint_of(first) != fingerprint_of(second)
    tied, untied = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    tied[1].weight = tied[0].weight
    untied.load_state_dict(tied.state_dict())
    assert fingerprint_of(tied) != fingerprint_of(untied)
    assert count_parameters(tied) == 4 + 2 + 2


def test_a_training_depends_on_modes_and_gradients_and_an_answer_does_not():
    plain, frozen = a_net(), a_net()
    frozen[1].eval().requires_grad_(False)
    assert fingerprint_of(plain) == fingerprint_of(frozen)
    assert fingerprint_of(plain, trained=True) != fingerprint_of(frozen, trained=True)
    assert fingerprint_of(plain, trained=True) == fingerprint_of(a_net(), trained=True)


def test_without_weights_only_the_rest_counts():
    moved = a_net()
    with torch.no_grad():
        moved[4].weight.add_(1)
    assert fingerprint_of(moved, weights=False) == fingerprint_of(a_net(), weights=False)
    assert fingerprint_of(a_net(0.2), weights=False) != fingerprint_of(a_net(), weights=False)


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2, device="meta"), lambda: nn.LazyLinear(2)])
def test_a_network_without_data_is_refused(make):
    with pytest.raises(ModelError, match=r"'0.weight', (without data \(device meta|of a lazy module)"):
        fingerprint_of(nn.Sequential(make()))


@pytest.mark.parametrize(
    "norm",
    [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm],
    ids=["weight_norm", "spectral_norm", "parametrized"],
)
def test_normed_weights_are_copied_and_known(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, again = ([torch.manual_seed(0), norm(nn.Linear(3, 2))][1] for _ in range(2))
    known = fingerprint_of(made)
    assert known == fingerprint_of(again) == fingerprint_of(copy_of(made, "It"))
    rows = torch.ones(1, 3)
    with torch.no_grad():
        assert torch.equal(copy_of(made, "It").eval()(rows), made.eval()(rows))
    assert fingerprint_of(made) == known  # the weight that was computed for this pass says nothing new
    assert not shared_tensors(copy_of(made, "It"), [*made.parameters(), *made.buffers()])


def quantised(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})


def test_packed_int8_weights_are_read():
    assert fingerprint_of(quantised(0)) == fingerprint_of(quantised(0)) == fingerprint_of(copy_of(quantised(0), "It"))
    assert fingerprint_of(quantised(0)) not in (None, fingerprint_of(quantised(1)))


def test_a_traced_graph_is_known_by_its_code_and_weights():
    traced = [torch.fx.symbolic_trace(a_net(slope)) for slope in (0.1, 0.1, 0.2)]
    assert fingerprint_of(traced[0]) == fingerprint_of(traced[1]) not in (None, fingerprint_of(traced[2]))


# --- attributes ----------------------------------------------------------------------------------------

CHANGES = {
    "number": (1, 2),
    "kind of number": (1, 1.0),
    "text": ("a", "b"),
    "bytes": (b"a", b"b"),
    "none": (None, 0),
    "tuple": ((1, 2), (2, 1)),
    "list in a dictionary": ({"a": [1, {2: 3}]}, {"a": [1, {2: 4}]}),
    "set": ({1, "a"}, {1, "b"}),
    "tensor": (torch.zeros(3), torch.ones(3)),
    "large tensor": (torch.zeros(3000), torch.arange(3000) // 2999),
    "sparse tensor": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "array": (np.zeros(3), np.ones(3)),
    "array's type": (np.zeros(3, "f4"), np.zeros(3, "i4")),
    "array of objects": (np.array([{"a": 1}]), np.array([{"a": 2}])),
    "dtype": (torch.float16, torch.bfloat16),
    "device": (torch.device("cpu"), torch.device("meta")),
    "enum": (Colour.RED, Colour.BLUE),
    "dataclass": (Options(1.0), Options(2.0)),
    "path": (Path("a"), Path("b")),
    "function": (one, other),
    "closure": (closed(1), closed(2)),
    "closure over a list": (closed([1]), closed([2])),
    "partial": (functools.partial(one, power=2), functools.partial(one, power=3)),
    "bound method": (Plain(1).times, Plain(2).times),
    "slots": (Plain([1]), Plain([2])),
    "named tuple": (Pair(1, 2), Pair(1, 3)),
    "default dictionary": (collections.defaultdict(list), collections.defaultdict(dict)),
    "namespace": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "pattern": (re.compile("a"), re.compile("a", re.I)),
    "slice": (slice(1, 2), slice(1, 3)),
    "hidden module": ([nn.Linear(1, 1, bias=False)], [nn.Linear(1, 1)]),
    "function of PyTorch": (nn.functional.relu, nn.functional.gelu),
    "built-in function": (torch.relu, torch.sigmoid),
    "number of NumPy": (np.float32(1), np.float32(2)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_attribute_counts_whatever_it_is(kind):
    before, after = (fingerprint_of(Holds(value)) for value in CHANGES[kind])
    assert None not in (before, after) and before != after
    assert before == fingerprint_of(Holds(CHANGES[kind][0])) == fingerprint_of(copy.deepcopy(Holds(CHANGES[kind][0])))


def test_what_changes_no_answer_does_not_count():
    asked = Holds(1)
    asked(torch.ones(1))
    assert asked.calls == 1 and fingerprint_of(asked) == fingerprint_of(Holds(1))
    loop: list[object] = []
    loop.append(loop)
    assert fingerprint_of(Holds(loop)) is not None
    sets = [{"a", "b", "c", 1}, {1, "c", "b", "a"}]
    assert fingerprint_of(Holds(sets[0])) == fingerprint_of(Holds(sets[1]))


def trees() -> object:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(2, random_state=0).fit(np.eye(4), [0, 1, 0, 1])


HIDDEN = {
    "generator": lambda: (number for number in range(3)),
    "file": lambda: open(__file__, encoding="utf-8"),  # noqa: SIM115
    "lock": threading.Lock,
    "random numbers": torch.Generator,
    "closure over a lock": lambda: closed(threading.Lock()),
    "trees of scikit-learn": trees,
    "TorchScript": lambda: torch.jit.script(nn.Linear(1, 1)),
    "deep in a list": lambda: {"a": [threading.Lock()]},
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_cannot_be_seen_has_no_fingerprint_and_is_named(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(Holds(HIDDEN[kind]()))
    assert fingerprint_of(module) is None
    assert fingerprint_or_new(module) != fingerprint_or_new(module)
    assert unseen_in(net=module).startswith("net.0.value")


def test_a_linear_model_of_scikit_learn_is_seen_whole():
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(0).normal(size=(20, 2))
    fitted = [LogisticRegression().fit(rows, labels) for labels in (rows[:, 0] > 0, rows[:, 0] > 0, rows[:, 0] < 0)]
    known = [fingerprint_of(Holds(one)) for one in fitted]
    assert known[0] == known[1] not in (None, known[2])


# --- code ----------------------------------------------------------------------------------------------


def test_defaults_closures_and_helpers_count():
    assert fingerprint_of(one) != fingerprint_of(other)
    assert fingerprint_of(Own()) != fingerprint_of(Changed())
    assert fingerprint_of(Decorated()) != fingerprint_of(DecoratedOtherwise())
    made = [lambda x, factor=factor: x * factor for factor in (1, 2)]
    assert fingerprint_of(made[0]) != fingerprint_of(made[1])
    assert fingerprint_of(closed(1)) == fingerprint_of(closed(1)) != fingerprint_of(closed(2))


def test_a_global_that_the_code_reads_counts(monkeypatch):
    before = fingerprint_of(ReadsGlobal())
    monkeypatch.setitem(globals(), "TABLE", [3.0])
    assert fingerprint_of(ReadsGlobal()) != before


def test_known_code_is_known_by_its_name():
    assert None not in (fingerprint_of(kd), fingerprint_of(build("net", shape=(1, 4, 4), classes=2)))
    assert fingerprint_of(kd) == fingerprint_of(kd)
    assert fingerprint_of(Own()) == fingerprint_of(copy.deepcopy(Own()))


def test_ten_million_numbers_take_little_longer_than_their_bytes():
    net = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(10)])
    fingerprint_of(net)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        fingerprint_of(net)
        took.append(time.perf_counter() - began)
    assert min(took) < 1.0  # 0.03 s where the processor has instructions for SHA-256


@pytest.mark.parametrize("change", [lambda conf: setattr(conf, "SCALE", 0.0), lambda conf: conf.options.update(s=2)])
def test_settings_in_a_module_of_ones_own_count_as_they_are_now(change, tmp_path, monkeypatch):
    (tmp_path / "conf_of_mine.py").write_text("SCALE = 1.0\noptions = {'s': 1}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import conf_of_mine  # type: ignore[import-not-found]

    monkeypatch.setitem(conf_of_mine.__dict__, "SCALE", 1.0)
    monkeypatch.setitem(conf_of_mine.__dict__, "options", {"s": 1})
    model = Holds(conf_of_mine)
    before = fingerprint_of(model)
    assert before is not None and fingerprint_of(model) == before
    change(conf_of_mine)
    assert fingerprint_of(model) not in (None, before)
