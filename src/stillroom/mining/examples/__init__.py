"""Which data taught a model: what is typical, what moved it most, and which labels look wrong."""

from stillroom.mining.examples.panel import examples

__all__ = ["examples"]
