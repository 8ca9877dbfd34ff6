"""The table of losses. A loss is one pure function and its line here; its signature is its schema."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from stillroom.losses.attention import attention_transfer
from stillroom.losses.features import hint
from stillroom.losses.penalties import l1, l2
from stillroom.losses.relations import bank
from stillroom.losses.response import kd, kd_soft, labels, mse_logits, soften


class Prepared(NamedTuple):
    """A loss in two parts: targets that do not depend on the student, made once; and the loss from them."""

    targets: Callable[..., Tensor]
    loss: Callable[..., Tensor]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "attention_transfer": attention_transfer,
    "bank": bank,
    "hint": hint,
    "kd": kd,
    "l1": l1,
    "l2": l2,
    "labels": labels,
    "mse_logits": mse_logits,
}

PREPARED: dict[Callable[..., Tensor], Prepared] = {kd: Prepared(soften, kd_soft)}

__all__ = [
    "LOSSES",
    "PREPARED",
    "Prepared",
    "attention_transfer",
    "bank",
    "hint",
    "kd",
    "l1",
    "l2",
    "labels",
    "mse_logits",
]
