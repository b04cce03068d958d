"""alias add, list, remove: other names of the subjects that a memory holds facts about."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from memlayers.cli.app import Backbone, Device, Folder, Json, Pool, Quiet, app
from memlayers.cli.edit import edit_memory
from memlayers.cli.listing import print_columns

alias_app = typer.Typer(
    help="Other names of a memory's subjects: add, list and remove them.",
    epilog="Example: memlayers alias list runs/demo/memory",
    no_args_is_help=True,
)
app.add_typer(alias_app, name="alias")

Subject = Annotated[str, typer.Argument(help="As the stored facts have it.")]
Aliases = Annotated[list[str], typer.Argument(help="One or several names, each in quotes.", metavar="ALIAS...")]


@alias_app.command(
    "add", epilog='Example: memlayers alias add runs/demo/memory "Chemikal Underground" "Chemikal Records"'
)
def alias_add(
    memory: Folder,
    subject: Subject,
    alias: Aliases,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Have a stored subject be known by other names too. `memlayers undo` takes it back."""
    edit_memory(
        memory, "Adding", lambda opened: opened.add_aliases(subject, alias),
        lambda book: book.plan_add_aliases(subject, alias), backbone, device, pool, quiet, as_json,
    )  # fmt: skip


@alias_app.command("list", epilog="Example: memlayers alias list runs/demo/memory")
def alias_list(
    memory: Folder,
    subject: Annotated[str | None, typer.Option(help="Only its aliases.")] = None,
    as_json: Json = False,
) -> None:
    """List the aliases of the stored subjects, one a line."""
    from memlayers.data.facts import aliases_by_subject
    from memlayers.inference.folder import stored_facts

    found = aliases_by_subject(stored_facts(memory))
    if subject is not None:
        found = {name: aliases for name, aliases in found.items() if name.casefold() == subject.casefold()}
    if as_json:
        for name, aliases in found.items():
            print(json.dumps({"subject": name, "aliases": aliases}, ensure_ascii=False))
        return
    if not found:
        print(
            f"memlayers: {memory}: {'no aliases' if subject is None else f'no aliases of {subject!r}'}", file=sys.stderr
        )
    print_columns([(name, alias) for name, aliases in found.items() for alias in aliases])


@alias_app.command(
    "remove", epilog='Example: memlayers alias remove runs/demo/memory "Chemikal Underground" "Chemikal Records"'
)
def alias_remove(
    memory: Folder,
    subject: Subject,
    alias: Aliases,
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Have a stored subject be known by some of its aliases no more."""
    edit_memory(
        memory, "Removing", lambda opened: opened.remove_aliases(subject, alias),
        lambda book: book.plan_remove_aliases(subject, alias), backbone, device, pool, quiet, as_json,
    )  # fmt: skip
