"""serve: memories behind an API like OpenAI's, edited while they answer, and a page."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from memlayers.cli.app import Backbone, Device, Pool, Quiet, app
from memlayers.utils.errors import InputError, WorkError

_GUARD = "Who may ask, and how much"


@app.command(epilog="Example: memlayers serve runs/demo/memory")
def serve(
    memories: Annotated[list[Path], typer.Argument(help="Folders of memories.", metavar="MEMORY")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that clients must send.", envvar="MEMLAYERS_API_KEY", show_envvar=True, rich_help_panel=_GUARD
        ),
    ] = None,
    open_chat: Annotated[
        bool,
        typer.Option("--open-chat", help="Chat without the key; facts and metrics need it.", rich_help_panel=_GUARD),
    ] = False,
    rate: Annotated[
        str | None, typer.Option(help="Requests of one client, as 60/minute. [any]", rich_help_panel=_GUARD)
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests for answers at once, waiting ones too.", rich_help_panel=_GUARD)
    ] = 256,
    max_body: Annotated[float, typer.Option(min=0.001, help="Of a request, MiB.", rich_help_panel=_GUARD)] = 2.0,
    max_upload: Annotated[float, typer.Option(min=0.001, help="Of a table, MiB.", rich_help_panel=_GUARD)] = 64.0,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="Say so where neither side is sure, unless a request decides.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning, error.")] = "info",
    backbone: Backbone = None,
    device: Device = None,
    pool: Pool = "device",
    quiet: Quiet = False,
) -> None:
    """Serve memories: chat as OpenAI's API has it, facts edited while it runs, a page at /."""
    from memlayers.serving.settings import LOOPBACK_NAMES, MIB, ServeSettings, check_exposure

    if log_level not in ("debug", "info", "warning", "error"):
        raise InputError(f"--log-level {log_level}: give debug, info, warning or error")
    settings = ServeSettings(
        api_key, open_chat, abstain, rate, queue, int(max_body * MIB), int(max_upload * MIB),
        hosts=LOOPBACK_NAMES if api_key is None else None,
    )  # fmt: skip
    check_exposure(host, settings)
    try:
        import fastapi  # noqa: F401
        import limits  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'memlayers[serve]'") from None
    with _bound(host, port) as listening:
        from memlayers.serving.app import create_app
        from memlayers.serving.logs import log_as_json
        from memlayers.serving.memories import close_memories, open_memories
        from memlayers.utils.progress import progress_bar

        with progress_bar("Loading the memories", quiet=quiet):
            opened = open_memories(memories, backbone=backbone, device=device, pool=pool)
        try:
            application = create_app(opened, settings)
            log_as_json(log_level)
            config = uvicorn.Config(
                application, log_config=None, server_header=False, access_log=False, timeout_graceful_shutdown=5
            )  # fmt: skip
            if not quiet:
                shown = f"[{host}]" if ":" in host else host
                at = f"http://{shown}:{listening.getsockname()[1]}"
                print(f"memlayers: serving {', '.join(opened)} at {at} (Ctrl-C ends it)", file=sys.stderr)
            # Uvicorn hands the signal that ended it on: the memories are closed then, too.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            close_memories(opened.values())


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the address, before minutes go into loading; nobody can connect to it yet.

    Raises:
        WorkError: the address is taken, or none of this machine's.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host.strip("[]"), port))
    except OSError as error:
        made.close()
        raise WorkError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return made
