"""The table of losses. A loss is one pure function and its line here; its signature is its schema."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from stillroom.losses.attention import attention_relations, attention_transfer
from stillroom.losses.decoupled import dkd, nkd
from stillroom.losses.divergences import forward_kl, jsd, reverse_kl, skew_kl
from stillroom.losses.features import hcl, hint, nst
from stillroom.losses.gradients import (
    directional_derivative,
    embedding_gradient,
    explanation,
    input_gradient,
    input_gradient_cosine,
)
from stillroom.losses.memory import memory, memory_cells, memory_prefix, memory_updates
from stillroom.losses.penalties import l1, l2
from stillroom.losses.relations import bank, crd, pkt, rkd, sp
from stillroom.losses.response import dist, kd, kd_multilabel, kd_soft, labels, lskd, mse_logits, regression, soften


class Prepared(NamedTuple):
    """A loss in two parts: targets that do not depend on the student, made once; and the loss from them."""

    targets: Callable[..., Tensor]
    loss: Callable[..., Tensor]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "attention_relations": attention_relations,
    "attention_transfer": attention_transfer,
    "bank": bank,
    "crd": crd,
    "directional_derivative": directional_derivative,
    "dist": dist,
    "dkd": dkd,
    "embedding_gradient": embedding_gradient,
    "explanation": explanation,
    "forward_kl": forward_kl,
    "hcl": hcl,
    "hint": hint,
    "input_gradient": input_gradient,
    "input_gradient_cosine": input_gradient_cosine,
    "jsd": jsd,
    "kd": kd,
    "kd_multilabel": kd_multilabel,
    "l1": l1,
    "l2": l2,
    "labels": labels,
    "lskd": lskd,
    "memory": memory,
    "memory_cells": memory_cells,
    "memory_prefix": memory_prefix,
    "memory_updates": memory_updates,
    "mse_logits": mse_logits,
    "nkd": nkd,
    "nst": nst,
    "pkt": pkt,
    "regression": regression,
    "reverse_kl": reverse_kl,
    "rkd": rkd,
    "skew_kl": skew_kl,
    "sp": sp,
}

PREPARED: dict[Callable[..., Tensor], Prepared] = {kd: Prepared(soften, kd_soft)}

__all__ = [
    "LOSSES",
    "PREPARED",
    "Prepared",
    "attention_relations",
    "attention_transfer",
    "bank",
    "crd",
    "directional_derivative",
    "dist",
    "dkd",
    "embedding_gradient",
    "explanation",
    "forward_kl",
    "hcl",
    "hint",
    "input_gradient",
    "input_gradient_cosine",
    "jsd",
    "kd",
    "kd_multilabel",
    "l1",
    "l2",
    "labels",
    "lskd",
    "memory",
    "memory_cells",
    "memory_prefix",
    "memory_updates",
    "mse_logits",
    "nkd",
    "nst",
    "pkt",
    "regression",
    "reverse_kl",
    "rkd",
    "skew_kl",
    "sp",
]
