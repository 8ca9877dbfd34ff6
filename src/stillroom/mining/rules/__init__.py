"""Rules: a decision tree that answers like the model, small enough to be read, and a soft one for images."""

from stillroom.mining.rules.panel import rules

__all__ = ["rules"]
