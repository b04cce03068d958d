"""The CPU kernels where numba may keep nothing on disk, and in a forked process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from memlayers.kernels.numba_cpu.compilation import NO_CACHE

PROGRAM = """
import sys
import numba.core.caching
if len(sys.argv) > 1:  # as where every folder is read-only; root may write anywhere
    numba.core.caching.CompileResultCacheImpl._locator_classes = []
import torch
from memlayers.kernels import numba_cpu
from memlayers.kernels.interface import Table
values = torch.arange(6.0, dtype=torch.bfloat16).view(3, 2)
print(numba_cpu.weighted_sum(Table(values), torch.tensor([[2, 1]]), torch.ones(1, 2), torch.float32).tolist())
"""


def test_without_a_folder_for_its_cache_numba_compiles_anew_and_one_line_says_so(
    warm_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    done = warm_python.run(PROGRAM, "nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[6.0, 8.0]]"
    assert done.stderr.count(NO_CACHE) == 1 and "NUMBA_CACHE_DIR" in NO_CACHE


def test_with_one_nothing_is_said(warm_python: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    done = warm_python.run(PROGRAM)
    assert done.returncode == 0 and done.stdout.strip() == "[[6.0, 8.0]]", done.stderr
    assert "NUMBA_CACHE_DIR" not in done.stderr
    assert list(tmp_path.rglob("*.nbi"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_forked_process_reads_and_steps_as_its_parent(warm_python: Any) -> None:
    """After the parent has used several threads: a DataLoader's workers and WarmPython are such forks."""
    code = """
import os, sys, torch
from memlayers.pool.row_adamw import RowAdamW
from memlayers.pool.value_pool import ValuePool

torch.set_num_threads(3)
pool = ValuePool(50, 8, torch.bfloat16)
pool.initialise("normal", 0)
optimizer = RowAdamW([pool.parameter], lr=0.1)

def step(seed):
    generator = torch.Generator().manual_seed(seed)
    pool(torch.randint(50, (600, 4), generator=generator), torch.rand(600, 4, generator=generator)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

step(0)
child = os.fork()
step(1)
print(pool.state_dict()["weight"].float().sum().item(), flush=True)
if child == 0:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = warm_python.run(code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
    assert torch.isfinite(torch.tensor(float(first)))
