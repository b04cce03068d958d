"""What the scripts of serving share: servers in processes of their own, a taught memory, questions of two kinds."""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import common
from memlayers.backbones import POCKET
from memlayers.config.teach import TeachConfig
from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Fact
from memlayers.inference.folder import stored_facts
from memlayers.utils.errors import WorkError

WORK = common.WORK / "serving"
_STARTING_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        address: ``http://127.0.0.1:PORT``.
        model: the id to ask for.
        pid: of its process.
    """

    address: str
    model: str
    pid: int


@contextmanager
def memlayers_serve(memory: Path, log: Path) -> Iterator[Server]:
    """`memlayers serve` of one memory."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "memlayers.cli",
        "serve",
        str(memory),
        "--port",
        str(port),
        "--quiet",
        "--device",
        "cpu",
    ]
    with _process([*command, "--log-level", "warning", "--queue", "1024"], port, log) as pid:
        yield Server(f"http://127.0.0.1:{port}", memory.resolve().name, pid)


@contextmanager
def transformers_serve(log: Path) -> Iterator[Server]:
    """`transformers serve` of the bare pocket backbone, in the dtype that memlayers loads it in."""
    port, source = _free_port(), "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", source, "serve", str(POCKET), "--port", str(port)]
    with _process([*command, "--device", "cpu", "--dtype", "float32", "--log-level", "error"], port, log) as pid:
        yield Server(f"http://127.0.0.1:{port}", str(POCKET), pid)


def servers_parser(text: str | None, out: Path) -> argparse.ArgumentParser:
    """The arguments that these scripts share.

    Args:
        text: of the script.
        out: where its results go, if not told otherwise.
    """
    parser = common.argument_parser(text)
    parser.add_argument("--memory", type=Path, help="a memory on pocket (default: one is taught)")
    parser.add_argument("--facts", type=int, default=100, help="of the memory that is taught (default: 100)")
    parser.add_argument("--out", type=Path, default=out, help="results file")
    return parser


def taught_memory(folder: Path | None, facts: int) -> Path:
    """A memory of the demo's facts on pocket: the one given, or one that is taught now and kept for a later call."""
    if folder is not None:
        return folder
    out = WORK / f"demo-{facts}"
    common.taught_memory(common.demo_facts(facts), out, TeachConfig()).close()
    return out


def opening_questions(memory: Path) -> list[str]:
    """A taught phrasing of every stored fact."""
    return [fact.questions[0] for fact in stored_facts(memory)]


def closed_questions(memory: Path, number: int, seed: int = common.SEED) -> list[str]:
    """Questions that the pocket backbone knows, about subjects that the memory does not hold."""
    held = {fact.subject for fact in stored_facts(memory)}
    known: list[Fact] = [fact for fact in read_facts(POCKET / "known.jsonl") if fact.subject not in held]
    return [fact.questions[0] for fact in random.Random(seed).sample(known, min(number, len(known)))]


@contextmanager
def _process(command: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """A process that is asked for its health until it answers, and ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=common.ROOT) as run,
    ):
        try:
            until = time.monotonic() + _STARTING_SECONDS
            while not _is_healthy(port):
                if run.poll() is not None:
                    raise WorkError(f"the server ended as it started, with status {run.returncode}: see {log}")
                if time.monotonic() > until:
                    raise WorkError(f"the server did not start in {_STARTING_SECONDS:.0f} s: see {log}")
                time.sleep(0.2)
            yield run.pid
        finally:
            run.terminate()
            try:
                run.wait(15)
            except subprocess.TimeoutExpired:
                run.kill()


def _is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
