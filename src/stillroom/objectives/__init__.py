"""Binding pure losses to models."""

from stillroom.objectives.connectors import Connector, masked_mean, pool
from stillroom.objectives.match import Objective, Weight, match
from stillroom.objectives.signature import Signature, Slot, signature

__all__ = ["Connector", "Objective", "Signature", "Slot", "Weight", "masked_mean", "match", "pool", "signature"]
