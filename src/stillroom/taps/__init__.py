"""Where to read in a model, and reading it."""

from stillroom.taps.reader import Encode, Reader, Takes, read, sizing

__all__ = ["Encode", "Reader", "Takes", "read", "sizing"]
