"""fetch: real backbones into the user's cache."""

from __future__ import annotations

from typing import Annotated

import typer

from memlayers.cli.app import Quiet, app
from memlayers.config.named_backbones import NAMED_BACKBONES, backbone_folder, is_fetched
from memlayers.utils.errors import InputError


@app.command(epilog="Example: memlayers fetch smollm2")
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Some of smollm2, qwen and gemma.", autocompletion=lambda: list(NAMED_BACKBONES)),
    ],
    quiet: Quiet = False,
) -> None:
    """Download small real backbones, checked and converted once, for --backbone smollm2, qwen or gemma."""
    for name in names:  # all are known before the first is downloaded
        if name not in NAMED_BACKBONES:
            raise InputError(f"no backbone {name!r} to fetch; take {', '.join(NAMED_BACKBONES)}")
    for name in names:
        if not is_fetched(name):  # known without torch
            from memlayers.backbones.fetching import fetch_backbone

            fetch_backbone(name, quiet=quiet)
        named = NAMED_BACKBONES[name]
        print(f"{name}: {named.model} ({named.licence}) is in {backbone_folder(name)}")
