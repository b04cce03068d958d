"""Two processes teach one memory, each on half of every batch, as one process would on all of it: DDP and FSDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")

CASES = [
    "ddp", "ddp_accumulates", "ddp_refuses_row_adamw", "ddp_by_accelerate", "one_reads_nothing", "one_names_nobody",
    "fsdp", "fsdp_accumulates", "fsdp_by_accelerate", "fsdp_refuses",
]  # fmt: skip


@pytest.fixture(scope="module")
def found(warm_python: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the two processes, which try all cases, say of each: "" where it held, or how it failed."""
    folder = tmp_path_factory.mktemp("distributed")
    code = (
        "import sys; rank, tests, folder, *cases = sys.argv[1:]; sys.path.insert(0, tests)\n"
        "from helpers.distributed import run; run(cases, int(rank), folder)"
    )
    processes = [warm_python.start(code, rank, Path(__file__).parents[1], folder, *CASES) for rank in range(2)]
    for process in processes:
        process.wait()
    return [
        json.loads(path.read_text()) if (path := folder / f"{rank}.json").exists() else {"": process.err.read_text()}
        for rank, process in enumerate(processes)
    ]


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, found: list[dict[str, str]]) -> None:
    """`helpers.distributed` says what is done and compared."""
    for of_rank in found:
        assert of_rank.get(case, f"not tried: {of_rank}") == ""
