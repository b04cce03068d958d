"""Two processes teach one memory, each on half of every batch, as one process would on all of it: DDP and FSDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built")

CASES = [
    "ddp", "ddp_accumulates", "ddp_refuses_row_adamw", "ddp_by_accelerate", "one_reads_nothing", "one_names_nobody",
    "fsdp", "fsdp_accumulates", "fsdp_by_accelerate", "fsdp_refuses",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, warm_python: Any, tmp_path: Path) -> None:
    """`helpers.distributed` says what is done and compared."""
    code = (
        "import sys; case, rank, tests, rendezvous = sys.argv[1:]; sys.path.insert(0, tests)\n"
        "from helpers.distributed import run; run(case, int(rank), rendezvous)"
    )
    tests, rendezvous = Path(__file__).parents[1], tmp_path / "rendezvous"
    processes = [warm_python.start(code, case, rank, tests, rendezvous) for rank in range(2)]
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], "\n".join(process.err.read_text()[-3000:] for process in processes)
