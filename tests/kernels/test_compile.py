"""Every Triton kernel compiles; `python -m helpers.compile_kernels` does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.compile_kernels import TARGETS
from helpers.kernels import needs_triton


@needs_triton
def test_every_kernel_compiles_for_cuda_and_rocm(tmp_path: Path) -> None:
    """What the interpreter does not check. The calls are real, only the launch is left out."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "helpers.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    from memlayers.kernels.triton_gpu import loops, top_k

    kernels = {name for module in (loops, top_k) for name in dir(module) if name.endswith("_kernel")}
    assert len(kernels) == 9
    assert {(backend, name) for backend, *_ in TARGETS for name in kernels} == {
        tuple(line.split()) for line in done.stdout.splitlines()
    }
