"""Stored knowledge: what a teacher showed, kept on disk, checked, and given back as if the teacher stood there."""

from stillroom.store.shelf import export_columns, inspect, list_stores, prune, verify
from stillroom.store.store import Store

__all__ = ["Store", "export_columns", "inspect", "list_stores", "prune", "verify"]
