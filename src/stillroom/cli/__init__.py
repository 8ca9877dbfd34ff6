"""The command line: one command a verb."""

from stillroom.cli.app import main

__all__ = ["main"]
