"""Where examples come from: the table of sources, and what makes a source of one's own data."""

from stillroom.data.table import SOURCES

__all__ = ["SOURCES"]
