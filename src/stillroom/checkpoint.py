"""A training at rest: everything that a bit-identical continuation needs, in one file that is whole or absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.contracts import Kept
from stillroom.errors import Damaged, TrainError, say
from stillroom.files import heal, writing
from stillroom.paths import is_file
from stillroom.tensors import pack, restore, state_of, unpack

NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class Moment:
    """Where a checkpoint was taken: steps done, and on what it was computed."""

    step: int
    inputs: str
    threads: int
    world: int
    torch: str
    capability: str

    @classmethod
    def now(cls, step: int, inputs: str, world: int) -> Moment:
        """Return this moment on this machine."""
        return cls(
            step, inputs, torch.get_num_threads(), world, torch.__version__, torch.backends.cpu.get_cpu_capability()
        )

    def differences(self, other: Moment) -> list[str]:
        """Name what keeps a continuation from being bit-identical."""
        keys = ("threads", "world", "torch", "capability")
        return [
            f"{key} {getattr(other, key)} then, {getattr(self, key)} now"
            for key in keys
            if getattr(self, key) != getattr(other, key)
        ]


def save(
    folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Kept], moment: Moment
) -> Path:
    """Write the learner, the optimizer and whatever else has a state into ``folder``; the one before is replaced."""
    tensors = {f"learner/{name}": value for name, value in state_of(learner).items()}
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{slot}"] = value
            else:
                plain.setdefault(str(index), {})[slot] = value
    for kind, other in others.items():
        tensors |= {f"{kind}/{name}": value for name, value in other.state_dict().items()}
    path = folder / NAME
    content = pack(tensors, {"moment": vars(moment), "groups": state["param_groups"], "slots": plain})
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return path


def load(
    folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, others: Mapping[str, Kept], inputs: str
) -> Moment | None:
    """Bring everything back from ``folder``; None when there is no checkpoint, or a damaged one, moved to ``old/``.

    Raises:
        TrainError: the checkpoint cannot be read, or belongs to another model, data, teacher or setting.
    """
    path = folder / NAME
    if not is_file(path):
        return None
    try:
        tensors, meta = unpack(path, error=Damaged)
        moment = Moment(**meta["moment"])
        groups, plain = meta["groups"], meta["slots"]
    except (Damaged, KeyError, TypeError) as error:
        if isinstance(error.__cause__, OSError):  # it may be good: nothing is begun anew for want of rights
            raise TrainError(str(error)) from error
        missing = f"{path} is not a checkpoint of Stillroom: got a note without {error}"
        heal(path, error if isinstance(error, Damaged) else missing)
        return None
    parts: dict[str, dict[str, Tensor]] = {"learner": {}, "optimizer": {}, **{kind: {} for kind in others}}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        parts.setdefault(kind, {})[rest] = value
    restore(learner, parts["learner"], error=TrainError, source=str(path))  # names what another architecture lacks
    if moment.inputs != inputs:
        raise TrainError(
            say(
                f"The checkpoint {path} belongs to another training of the same network",
                f"other settings, rows, weights of objectives or seed ({moment.inputs[:12]})",
                f"those of now ({inputs[:12]})",
                "Use another folder, or remove the checkpoint to start from the beginning.",
            )
        )
    state: dict[int, dict[str, Any]] = {}
    for name, value in parts["optimizer"].items():
        index, _, slot = name.partition("/")
        state.setdefault(int(index), {})[slot] = value
    for index, slots in plain.items():
        state.setdefault(int(index), {}).update(slots)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for kind, other in others.items():
        other.load_state_dict(parts[kind])
    return moment
