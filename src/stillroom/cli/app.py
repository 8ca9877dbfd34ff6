"""The application: its commands, and how every error reaches the person who can mend it."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from stillroom.cli import mining, models, runs, stores
from stillroom.cli.help import Command
from stillroom.errors import RecipeError, UserError, no_memory, out_of_memory, say
from stillroom.paths import REASONS, is_utf8, unreadable
from stillroom.terminal import visible

GOOD, OURS, THEIRS = 0, 1, 2
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells count them; Typer too for Ctrl-C
GO_ON = "What was finished is kept; run the same command again to go on."
EMPTY = re.compile("--[a-z][a-z0-9-]*=")  # an option with nothing behind its sign
# Typer brings Click along under its own name or beside it, depending on its version.
USAGE: type[Exception] = next(  # type: ignore[assignment]
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="stillroom",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with: stillroom new images my.yaml && stillroom run my.yaml",
)
for command in (
    runs.new,
    runs.check,
    runs.run,
    runs.record,
    runs.train,
    models.evaluate,
    mining.mine,
    models.predict,
    runs.report,
    models.export,
):
    app.command(cls=Command)(command)
app.add_typer(stores.app, name="store")
app.add_typer(models.data_app, name="data")
app.command(cls=Command)(models.version)


class Terminated(BaseException):
    """The process was asked to end (SIGTERM); it unwinds, so that its workers end too."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"stillroom {version('stillroom')}\n")
        raise typer.Exit


@app.callback()
def stillroom(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    """Distil trained neural networks: the teacher runs once, and every run says whether it helped."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def main() -> NoReturn:
    """Run the command line: 0 good, 2 the user's mistake, 1 ours, 130 after Ctrl-C, 143 after SIGTERM."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        check_words(sys.argv[1:])
        answer = app(standalone_mode=False)
        if answer == INTERRUPTED:
            raise KeyboardInterrupt
        code = answer if isinstance(answer, int) else GOOD
    except typer.Exit as stop:
        code = stop.exit_code
    except USAGE as error:
        shown = io.StringIO()
        error.show(file=shown)  # type: ignore[attr-defined]
        if type(error).__name__ == "BadParameter":  # which does not say what was given
            shown.write(f"Given: stillroom {shlex.join(sys.argv[1:])}\n")
        sys.stderr.write(visible(shown.getvalue()))
        code = THEIRS
    except (KeyboardInterrupt, typer.Abort):
        say_stopped("Stopped")
        code = INTERRUPTED
    except Terminated:
        say_stopped("Terminated")
        code = TERMINATED
    except UserError as error:
        told(error)
        code = THEIRS
    except BrokenPipeError:
        os._exit(GOOD)
    except Exception as error:
        if os.environ.get("STILLROOM_DEBUG"):
            raise
        known = of_the_machine(error)
        code = OURS if known is None else THEIRS
        complain(known or fault(error))
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    sys.exit(code)


def check_words(words: Sequence[str]) -> None:
    """Refuse an argument that is empty, as of a variable of the shell without a value, or that is no text.

    Raises:
        UserError: there is one.
    """
    for place, word in enumerate(words):
        if not word.strip() or EMPTY.fullmatch(word):
            before = words[place - 1] if place and not EMPTY.fullmatch(word) else word
            given, do = f"'' for {before}" if before else "''", "Give a value, or leave the option out."
            raise UserError(say("An argument is empty", given, "text; a variable of the shell may have no value", do))
        if not is_utf8(word):
            do = "Rename the file or folder, or reach it through a link with another name."
            raise UserError(say("An argument is not text in UTF-8", f"'{word}'", "names that can be written down", do))


def of_the_machine(error: Exception) -> str | None:
    """Return what is said when memory ran out or the system refused a file, None where neither is so."""
    if out_of_memory(error):
        return no_memory(error)
    if not isinstance(error, OSError):
        return None
    place = Path(error.filename) if isinstance(error.filename, str) else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        from stillroom.files import refused

        return str(refused(place or Path("a file"), error))
    return unreadable(place, error) if place is not None and error.errno in REASONS else None


def fault(error: Exception) -> str:
    """Return what is said when Stillroom itself fails."""
    return (
        f"This is a fault of Stillroom, not yours: {type(error).__name__}: {error}. What was finished is kept. "
        "Run again with STILLROOM_DEBUG=1 for the traceback, and please report it."
    )


def say_stopped(how: str) -> None:
    """Say that the work was stopped, which is nobody's error."""
    sys.stderr.write(f"{how}. {GO_ON}\n")


def told(error: UserError) -> None:
    """Print an error; a recipe's mistakes one a line."""
    if isinstance(error, RecipeError) and len(error.mistakes) > 1:
        complain(f"The recipe has {len(error.mistakes)} mistakes:")
        for mistake in error.mistakes:
            sys.stderr.write(visible(f"  {mistake}\n"))
    else:
        complain(str(error))


def complain(text: str) -> None:
    """Print one message on standard error; what it quotes does not steer the terminal."""
    sys.stderr.write(visible(f"error: {text}\n"))
