"""Mining: what a trained model knows, in words, numbers and pictures that a person can check."""

from stillroom.mining.panel import Budget, Panel
from stillroom.mining.panels import PANELS
from stillroom.mining.subject import Subject

__all__ = ["PANELS", "Budget", "Panel", "Subject"]
