"""How the help of a command shows its arguments: in the words of their authors, without Python types."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand


class Argument(TyperArgument):
    """An argument that is shown as its metavar says: ``RECIPE``, ``[FILE]`` where it may be left out, ``RUN...``."""

    def get_help_record(self, ctx: Any) -> tuple[str, str] | None:
        """Return the name and the help that stand in the list of arguments."""
        record = super().get_help_record(ctx)
        return None if record is None else (self.metavar or record[0], record[1])

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands in the line of usage."""
        return [self.metavar] if self.metavar else super().get_usage_pieces(ctx)


class Command(TyperCommand):
    """A command with such arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.__class__ = Argument
