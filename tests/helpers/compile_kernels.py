"""Compiles Triton's kernels for CUDA and for ROCm; no GPU is needed.

`PYTHONPATH=tests python -m helpers.compile_kernels` prints the kernels' names.
"""

from __future__ import annotations

from typing import Any

import torch

from helpers.kernels import FORMATS, SLOTS, adamw_step, drift, random_integers, random_table, random_tensor, read_log
from memlayers.kernels import reference

TARGETS = (("cuda", 80, 32), ("hip", "gfx1100", 32))


def _compile() -> None:
    """Compiles for devices that are not there, and prints the names of the kernels."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from memlayers.kernels import triton_gpu

    class Absent:
        def __init__(self, number: int) -> None:
            self.number = number

        def get_current_target(self) -> Any:
            return GPUTarget(*TARGETS[self.number])

        def get_current_device(self) -> int:
            return self.number

        def get_current_stream(self, device: int) -> int:
            return 0

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        print(driver.active.get_current_target().backend, kernel.__name__)
        return launch(kernel, *arguments, grid=grid, warmup=True, **constants)

    launch, JITFunction.run = JITFunction.run, compile_only
    for number in range(len(TARGETS)):
        driver.set_active(Absent(number))
        # What a format does to a kernel is the same for both.
        for d, form in ((3584, FORMATS[7]), (3584, FORMATS[3]), (5, FORMATS[1]))[: 3 if number == 0 else 1]:
            table, indices = random_table(d, form[0]), random_integers(SLOTS, 2, 8, dtype=torch.int32)
            triton_gpu.weighted_sum(table, indices, random_tensor(2, 8), torch.bfloat16)
            adamw_step(triton_gpu, d, form, gradient=torch.bfloat16)
            drift(triton_gpu, d, form)
        drift(triton_gpu, 320, FORMATS[3], with_state=False)
        triton_gpu.weight_gradient(table, indices, random_tensor(2, d).bfloat16())
        log = read_log(320)
        triton_gpu.invert(log)
        triton_gpu.row_gradients(log, reference.invert(log), torch.arange(2))
        triton_gpu.square_norm(log, reference.invert(log))
        triton_gpu.product_key_top_k(random_tensor(2, 512), random_tensor(2, 512), 8)


if __name__ == "__main__":
    _compile()
