"""Concepts: the directions a model thinks in, what shows them, and what happens when they are taken away."""

from stillroom.mining.concepts.panel import concepts

__all__ = ["concepts"]
