"""Commands on stores: inspect, verify, list, prune, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stillroom.cli.help import Command
from stillroom.paths import is_folder

app = typer.Typer(
    help="Inspect, verify, export and prune stores.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: stillroom store inspect runs/images/knowledge",
)
Folder = Annotated[
    Path, typer.Argument(metavar="STORE", help="A store, for example runs/images/knowledge", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output")]
Root = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]", help="Where to look (default: the cache shared by all runs)", show_default=False
    ),
]


@app.command(cls=Command)
def inspect(folder: Folder, as_json: Json = False) -> None:
    """Show what a store holds.

    Example: stillroom store inspect runs/images/knowledge
    """
    from stillroom import store

    _show(store.inspect(folder), as_json)


@app.command(cls=Command)
def verify(folder: Folder, as_json: Json = False) -> None:
    """Verify the SHA-256 checksum of every shard.

    Example: stillroom store verify runs/images/knowledge
    """
    from stillroom import store
    from stillroom.progress import waiting

    with waiting(f"reading {folder}"):
        facts = store.verify(folder)
    _show({"whole": True, **facts}, as_json)


@app.command(name="list", cls=Command)
def list_(root: Root = None, as_json: Json = False) -> None:
    """List the stores in a folder, with those that runs link to.

    Example: stillroom store list runs
    """
    from stillroom import store
    from stillroom.cli.screen import bytes_text, out, show_json

    place = _place(root)
    found = store.list_stores(place)
    for link in sorted(path for path in place.rglob("*") if path.is_symlink() and is_folder(path)):
        found += store.list_stores(link)
    if as_json:
        show_json(found)
        return
    if not found:
        out.print(f"There are no stores below {place}.", markup=False)
    for row in found:
        what = ", ".join(row["signals"]) if row["complete"] else "partly recorded"
        out.print(f"{row['rows']:>9,} rows  {bytes_text(row['bytes']):>9}  {row['folder']}  ({what})", markup=False)


@app.command(cls=Command)
def prune(
    root: Root = None,
    keep: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", min=0, help="Keep this many of the newest stores", show_default=False),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Only stores that were not used for so many days", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without --yes they are only listed")] = False,
    as_json: Json = False,
) -> None:
    """Remove old stores.

    Only what is recognised as a store is ever removed, and links are not followed.

    Example: stillroom store prune --older-than 30 --yes
    """
    from stillroom import store
    from stillroom.cli.screen import out, show_json

    gone = [one["folder"] for one in store.prune(_place(root), keep=keep, older_than=older_than, dry_run=not yes)]
    if as_json:
        show_json({"removed" if yes else "would_remove": gone})
        return
    for one in gone:
        out.print(f"{'removed' if yes else 'would remove'} {one}", markup=False)
    if not gone:
        out.print("Nothing to remove.", markup=False)
    elif not yes:
        out.print("Nothing was removed yet: add --yes.", markup=False)


@app.command(cls=Command)
def export(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The Parquet file to write", show_default=False)],
) -> None:
    """Export a store to a Parquet file for pandas or DuckDB.

    Example: stillroom store export runs/images/knowledge knowledge.parquet
    """
    from stillroom import store
    from stillroom.cli.screen import out
    from stillroom.progress import waiting

    with waiting(f"writing {target}"):
        written = store.export_columns(folder, target)
    out.print(f"Wrote {written}", markup=False)


def _place(root: Path | None) -> Path:
    """Return where to look: what was given, else what all runs share (made if it is not there yet)."""
    from stillroom.cache import own_cache, private
    from stillroom.files import refused

    if root is not None:
        return root
    place = own_cache() / "knowledge"
    try:
        private(place)
    except OSError as error:
        raise refused(place, error) from error
    return place


def _show(facts: dict[str, Any], as_json: bool) -> None:
    from stillroom.cli.screen import bytes_text, out, show_json

    if as_json:
        show_json(facts)
        return
    for key, value in facts.items():
        text = bytes_text(value) if key == "bytes" else value
        out.print(f"{key:<14} {text}", markup=False)
