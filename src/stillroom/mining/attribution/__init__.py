"""What a model looks at: pixels, words or columns, and what would expose a map of them as nonsense."""

from stillroom.mining.attribution.panel import attribution

__all__ = ["attribution"]
