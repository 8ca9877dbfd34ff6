"""Binding pure losses to models."""

from stillroom.objectives.connectors import Connector, masked_mean, pool
from stillroom.objectives.match import Given, Objective, Weight, match, objectives_of
from stillroom.objectives.signature import Signature, Slot, signature

__all__ = [
    "Connector",
    "Given",
    "Objective",
    "Signature",
    "Slot",
    "Weight",
    "masked_mean",
    "match",
    "objectives_of",
    "pool",
    "signature",
]
