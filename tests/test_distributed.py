"""Several processes teach one memory, each on a part of every batch, as one would on all of it: teaching, DDP, FSDP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ranks
from helpers.teaching import adapter_bytes, teach

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built"),
    pytest.mark.usefixtures("short_answers"),
]

OF_ANY_NUMBER = [
    "ddp_row_adamw", "refuses_other_facts_and_settings", "teaches_the_same_bytes", "split_pool_alone",
    "split_states_travel", "split_pool_is_taught_the_same_bytes",
]  # fmt: skip
OF_TWO = [
    "ddp", "ddp_accumulates", "ddp_row_adamw_in_other_ways", "ddp_around_something_else", "ddp_by_accelerate",
    "ddp_by_trainers", "one_reads_nothing", "one_names_nobody", "fsdp", "fsdp_accumulates", "fsdp_by_accelerate",
    "fsdp_refuses", "split_weights_learn", "split_memory_learns", "split_and_nobody_is_named", "split_saved_and_loaded",
    "split_beside_a_placed_backbone", "split_refuses",
]  # fmt: skip
CASES = {2: [*OF_TWO, *OF_ANY_NUMBER, "fails_in_one_and_ends_in_all"], 3: ["dies_in_a_step"], 4: OF_ANY_NUMBER}
"""By the number of processes. A case that ends the job is the last."""
KILLED = -9


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, chat_backbone: Path, general_file: Path, short_answers: None
) -> Path:
    """Where the processes find what to teach, and leave it."""
    made = tmp_path_factory.mktemp("distributed")
    ranks.prepare(made, chat_backbone, general_file)
    return made


@pytest.fixture(scope="module")
def found(warm_python: Any, folder: Path, chat_backbone: Path) -> dict[int, list[dict[str, str]]]:
    """By the number of processes what each, which tries all cases, says of each: "" where it held, or how it failed."""
    code = (
        "import sys; rank, size, tests, folder, *cases = sys.argv[1:]; sys.path.insert(0, tests)\n"
        "from helpers.distributed import run; run(cases, int(rank), int(size), folder)"
    )
    said = {}
    os.environ["CHAT_BACKBONE"] = str(chat_backbone)
    for size, cases in CASES.items():
        own = folder / str(size)
        own.mkdir()
        for path in folder.glob("*-1"), folder.glob("*.json"):
            for each in path:
                (own / each.name).symlink_to(each)
        processes = [warm_python.start(code, rank, size, Path(__file__).parent, own, *cases) for rank in range(size)]
        for process in processes:
            process.wait()
        said[size] = [
            json.loads(path.read_text()) if (path := own / f"{rank}.json").exists() else {"": process.err.read_text()}
            for rank, process in enumerate(processes)
        ]
    return said


@pytest.mark.parametrize(("size", "case"), [(size, case) for size, cases in CASES.items() for case in cases])
def test_several_processes(size: int, case: str, found: dict[int, list[dict[str, str]]]) -> None:
    """`helpers.distributed` and `helpers.ranks` say what is done and compared."""
    for rank, of_rank in enumerate(found[size]):
        if (case, rank) != ("dies_in_a_step", 1):
            assert of_rank.get(case, f"not tried: {of_rank}") == ""


def test_what_a_killed_job_left_is_resumed_by_one_process_to_the_same_bytes(
    found: dict[int, list[dict[str, str]]], folder: Path
) -> None:
    (size,) = (size for size, cases in CASES.items() if "dies_in_a_step" in cases)
    out = folder / str(size) / f"killed-{size}"
    teach(out, ranks.settings_of(folder, "killed"), resume=True)
    assert adapter_bytes(out) == adapter_bytes(folder / "killed-1")
