"""Named tensors to bytes and back: equal content as equal bytes, anything else refused with advice."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import nn

from stillroom import tensors
from stillroom.errors import ModelError, TrainError


def a_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def written(path, content, meta=None):
    path.write_bytes(tensors.pack(content, meta))
    return tensors.unpack(path)


def test_round_trip_keeps_values_types_and_note(tmp_path):
    content = {
        "a": torch.randn(2, 3),
        "b": torch.randn(4).bfloat16(),
        "c": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "d": torch.tensor([True, False]),
    }
    read, meta = written(tmp_path / "x.safetensors", content, {"step": 3, "groups": [{"lr": 0.1}]})
    assert meta == {"step": 3, "groups": [{"lr": 0.1}]}
    assert read.keys() == content.keys()
    for name, value in content.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype


def test_equal_content_is_equal_bytes_whatever_the_order_and_layout():
    images = torch.randn(2, 3, 4, 5)
    one = tensors.pack({"a": images, "b": torch.arange(3)}, {"x": 1, "y": 2, "z": {"q": 1, "p": 2}})
    last = images.to(memory_format=torch.channels_last)
    packs = {
        tensors.pack({"b": torch.arange(3), "a": last}, {"z": {"p": 2, "q": 1}, "y": 2, "x": 1}) for _ in range(20)
    }
    assert packs == {one}
    assert tensors.pack({"a": images + 1, "b": torch.arange(3)}, {"x": 1}) != one


def test_shared_memory_is_written_once_and_read_under_every_name(tmp_path):
    shared = torch.randn(100, 100)
    packed = tensors.pack({"in": shared, "out": shared, "row": shared[0], "turned": shared.T})
    assert len(packed) < 2 * shared.numel() * 4 + 2000
    (tmp_path / "x").write_bytes(packed)
    read, _ = tensors.unpack(tmp_path / "x")
    assert torch.equal(read["in"], shared) and torch.equal(read["out"], shared)
    assert torch.equal(read["row"], shared[0]) and torch.equal(read["turned"], shared.T)


def test_tied_and_channels_last_modules_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 4)
            self.answer = nn.Linear(4, 9, bias=False)
            self.answer.weight = self.words.weight

    first, second = Tied(), Tied()
    read, _ = written(tmp_path / "x", tensors.state_of(first))
    tensors.restore(second, read)
    assert torch.equal(second.answer.weight, first.words.weight)
    assert second.answer.weight is second.words.weight

    last = a_net().to(memory_format=torch.channels_last)
    other = a_net().to(memory_format=torch.channels_last)
    with torch.no_grad():
        last[0].weight.add_(1)
    read, _ = written(tmp_path / "y", tensors.state_of(last))
    tensors.restore(other, read)
    assert torch.equal(other[0].weight, last[0].weight)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_file_of_another_author_has_an_empty_note(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    read, meta = tensors.unpack(tmp_path / "x.safetensors")
    assert torch.equal(read["w"], torch.ones(2)) and meta == {}


@pytest.mark.parametrize("length", [384, 0x80, 0x0280])
def test_a_header_whose_length_looks_like_a_pickle_is_still_read(tmp_path, length):
    value = torch.ones(2)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode().ljust(length)
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + header + value.numpy().tobytes())
    assert torch.equal(tensors.unpack(tmp_path / "x")[0]["w"], value)


def wrong_alias():
    import safetensors.torch

    note = json.dumps({"aliases": {"b": "nowhere"}, "meta": {}})
    return safetensors.torch.save({"a": torch.ones(1)}, metadata={tensors.NOTE: note})


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda: pickle.dumps({"w": [1, 2, 3] * 9}), "a pickle"),
        (lambda: tensors.pack(tensors.state_of(a_net()))[:-3], "damaged or cut short"),
        (lambda: tensors.pack(tensors.state_of(a_net()))[:40], "damaged or cut short"),
        (lambda: b"abc", "3 bytes"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (lambda: b"\xff" * 100, "damaged or cut short"),
        (wrong_alias, "damaged or cut short"),
    ],
)
def test_what_is_not_safetensors_is_refused(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content())
    with pytest.raises(TrainError, match=words) as caught:
        tensors.unpack(tmp_path / "x", error=TrainError)
    assert str(tmp_path / "x") in str(caught.value)


def test_a_torch_file_is_told_from_safetensors_and_not_run(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="weights_only=True"):
        tensors.unpack(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="does not exist"):
        tensors.unpack(tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="got a folder"):
        tensors.unpack(tmp_path)


def test_what_cannot_be_written_is_refused():
    for value, words in [
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.empty(3, device="meta"), "without data"),
    ]:
        with pytest.raises(ModelError, match=words):
            tensors.pack({"w": value})
    with pytest.raises(ModelError, match="their note"):
        tensors.pack({}, {"x": object()})
    with pytest.raises(ModelError, match="their note"):
        tensors.pack({}, {"x": float("nan")})

    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ModelError, match="_extra_state"):
        tensors.state_of(Odd(1, 1))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda held: held.pop("0.weight"), "without '0.weight'"),
        (lambda held: held.update(spare=torch.ones(1)), "with 'spare' that it lacks"),
        (lambda held: held.update({"0.weights": held.pop("0.weight")}), "may have been called '0.weights'"),
        (lambda held: held.update({"3.bias": torch.ones(5)}), r"\(5,\) float32.*\(2,\) float32"),
        (lambda held: held.update({"3.bias": torch.ones(2, dtype=torch.int64)}), "int64"),
    ],
)
def test_restore_names_what_does_not_fit_and_changes_nothing(change, words):
    module, held = a_net(), {name: value + 1 for name, value in tensors.state_of(a_net()).items()}
    change(held)
    before = tensors.pack(tensors.state_of(module))
    with pytest.raises(TrainError, match=words):
        tensors.restore(module, held, error=TrainError, source="checkpoint 7")
    assert tensors.pack(tensors.state_of(module)) == before


def test_weights_that_are_not_finite_are_named_but_a_mask_may_hold_infinity():
    module = a_net()
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    tensors.refuse_not_finite(module)
    with torch.no_grad():
        module[3].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="'3.weight'"):
        tensors.refuse_not_finite(module)


def test_an_lstm_in_bf16_is_refused_where_the_processor_has_none(monkeypatch):
    from stillroom import tensors

    monkeypatch.setattr(tensors, "lstm_runs_in_bf16", lambda: False)
    tensors.check_precision(nn.Linear(2, 2), "bf16")
    tensors.check_precision(nn.LSTM(2, 2), "float32")
    with pytest.raises(ModelError, match="LSTM cannot run in bf16.*precision: auto"):
        tensors.check_precision(nn.Sequential(nn.LSTM(2, 2)), "bf16")
    monkeypatch.setattr(tensors, "lstm_runs_in_bf16", lambda: True)
    tensors.check_precision(nn.LSTM(2, 2), "bf16")
