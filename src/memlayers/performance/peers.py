"""The same teaching step by other libraries (torch, torchao, fbgemm and others), as far as they are installed."""

from __future__ import annotations

import copy
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from memlayers.performance.figures import Clock, Shape, Timing
from memlayers.performance.reads import Reads
from memlayers.performance.stages import BETAS, EPS, RATE, make_pool
from memlayers.pool.product_keys import product_key_top_k
from memlayers.pool.row_adamw import RowAdamW

WHOLE_KEY_DIM: Final = 64  # of a half of a query, where whole layers are compared


def peer_steps(shape: Shape, kind: str, reads: Reads, clock: Clock) -> Iterator[Timing]:
    """The same teaching step done by others: all layers read one table, one backward, one optimizer step."""
    for stage, table in (("teaching step", _PEERS), ("whole layers", _WHOLE if kind == "uniform" else {})):
        for name, make in table.items():
            try:
                step = make(shape, reads, clock.device)
                if step is None:
                    continue
                taken, peak = clock(step), clock.peak(step)
            except ImportError:
                continue
            except RuntimeError as error:  # out of memory, or no kernel for this dtype or device
                print(f"{name} left out: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            ratio = reads.unique_ratio if table is _PEERS else None
            yield Timing(stage, name, kind, *taken, 0, 0, "", None, ratio, None, peak, "default", shape)
            del step
            gc.collect()


def _stock_table(shape: Shape, device: torch.device) -> torch.nn.Parameter | None:
    """None where the peers know no such storage."""
    if shape.dtype == "int8":
        return None
    return torch.nn.Parameter(
        torch.full((shape.slots, shape.dim), 0.03, dtype=getattr(torch, shape.dtype), device=device)
    )


def _stock(
    read: Callable[[Tensor, Tensor, Tensor], Tensor], optimize: Callable[[torch.nn.Parameter], torch.optim.Optimizer]
) -> Callable[[Shape, Reads, torch.device], Callable[[], None] | None]:
    """A peer made of a way to read and an optimizer."""

    def make(shape: Shape, reads: Reads, device: torch.device) -> Callable[[], None] | None:
        table = _stock_table(shape, device)
        if table is None:
            return None
        optimizer = optimize(table)
        weights = [weight.to(table.dtype) for weight in reads.weights]
        gradients = [gradient.to(table.dtype) for gradient in reads.gradients]

        def step() -> None:
            outputs = [read(table, index, weight) for index, weight in zip(reads.indices, weights, strict=True)]
            torch.autograd.backward(outputs, gradients)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def _gather(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("nr,nrd->nd", weights, table[indices])


def _bag(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


def _sparse_bag(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum", sparse=True)


def _adamw(**options: Any) -> Callable[[torch.nn.Parameter], torch.optim.Optimizer]:
    return lambda table: torch.optim.AdamW([table], lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, **options)


def _eight_bit(table: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Bitsandbytes' 8-bit AdamW; on a GPU only."""
    if table.device.type != "cuda":
        raise ImportError("bitsandbytes' optimizers need a GPU")
    if table.numel() >= 2**31:  # it would end the process
        raise RuntimeError(f"bitsandbytes counts elements in 32 bits, and these are {table.numel():,}")
    made: torch.optim.Optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit([table], lr=RATE)
    return made


def _torchao_offload(table: torch.nn.Parameter) -> torch.optim.Optimizer:
    """Torchao's CPU-offloaded AdamW; on a GPU only."""
    if table.device.type != "cuda":
        raise ImportError("there is nothing to offload from")
    optim = importlib.import_module("torchao.optim")
    made: torch.optim.Optimizer = optim.CPUOffloadOptimizer([table], torch.optim.AdamW, lr=RATE, fused=True)
    return made


def _fbgemm(shape: Shape, reads: Reads, device: torch.device) -> Callable[[], None] | None:
    """fbgemm-gpu-cpu's table-batched embedding with exact row-wise Adagrad: one moment a row, fused."""
    if shape.dtype != "float32" or device.type != "cpu" or importlib.util.find_spec("fbgemm_gpu") is None:
        return None
    training = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    configs = importlib.import_module("fbgemm_gpu.split_embedding_configs")
    spec = (shape.slots, shape.dim, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)
    table = training.SplitTableBatchedEmbeddingBagsCodegen(
        [spec], optimizer=configs.EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=RATE, eps=EPS,
        pooling_mode=common.PoolingMode.SUM,
    )  # fmt: skip
    indices, weights = (torch.cat(each).flatten() for each in (reads.indices, reads.weights))
    offsets = torch.arange(0, len(indices) + 1, shape.reads)
    gradient = torch.cat(reads.gradients)

    def step() -> None:  # the optimizer runs inside backward
        table(indices, offsets, per_sample_weights=weights).backward(gradient)

    return step


class _WholeLayers(torch.nn.Module):
    """Query, sub-keys, top-k and pool of all layers, everything learning, as in the dense recipe."""

    def __init__(self, shape: Shape, key_dim: int) -> None:
        super().__init__()
        self.shape, self.width = shape, key_dim
        self.queries = torch.nn.ModuleList(
            torch.nn.Linear(shape.dim, 2 * key_dim * shape.heads, bias=False) for _ in range(shape.layers)
        )
        self.keys = torch.nn.ParameterList(
            torch.randn(2, shape.heads, shape.sub_keys, key_dim) for _ in range(shape.layers)
        )
        self.pool = make_pool(shape, torch.device("cpu"))

    def forward(self, x: Tensor, number: int) -> Tensor:
        """[tokens, dim] -> [tokens, dim]."""
        query = self.queries[number](x).view(len(x), self.shape.heads, 2, self.width).permute(2, 1, 0, 3)
        scores = (query @ self.keys[number].mT).transpose(1, 2)  # [2, n, h, m]
        best, slots = product_key_top_k(scores[0], scores[1], self.shape.top_k)
        read: Tensor = self.pool(slots.flatten(1), best.softmax(-1).flatten(1))
        return read


def _own_whole_layers(shape: Shape, reads: Reads, device: torch.device) -> Callable[[], None] | None:
    """Whole memory layers of ours, against product-key-memory's."""
    if shape.dtype != "float32" or importlib.util.find_spec("product_key_memory") is None:
        return None
    layers = _WholeLayers(shape, WHOLE_KEY_DIM).to(device)
    x = torch.randn(shape.tokens, shape.dim, generator=torch.Generator().manual_seed(2)).to(device)
    optimizer = RowAdamW(layers.parameters(), lr=RATE, betas=BETAS, eps=EPS)

    def step() -> None:
        torch.autograd.backward([layers(x, number) for number in range(shape.layers)], reads.gradients)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _product_key_memory(shape: Shape, reads: Reads, device: torch.device) -> Callable[[], None] | None:
    """Lucidrains' product-key-memory, its layers sharing one table of values, with torch's fused AdamW."""
    if shape.dtype != "float32" or importlib.util.find_spec("product_key_memory") is None:
        return None
    make = importlib.import_module("product_key_memory").PKM
    layers = torch.nn.ModuleList(
        make(shape.dim, heads=shape.heads, num_keys=shape.sub_keys, topk=shape.top_k, dim_head=WHOLE_KEY_DIM)
        for _ in range(1)
    )
    for _ in range(shape.layers - 1):  # a twin of the first but for the values, which would not fit three times
        twin = copy.deepcopy(layers[0], {id(layers[0].values): layers[0].values})
        layers.append(twin)
    layers = layers.to(device)
    x = torch.randn(1, shape.tokens, shape.dim, generator=torch.Generator().manual_seed(2)).to(device)
    gradients = [gradient[None] for gradient in reads.gradients]
    optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def step() -> None:
        torch.autograd.backward([layer(x) for layer in layers], gradients)
        optimizer.step()
        optimizer.zero_grad()

    return step


_PEERS: Final = MappingProxyType(
    {
        "gather + einsum, AdamW": _stock(_gather, _adamw(foreach=False)),
        "embedding_bag, fused AdamW": _stock(_bag, _adamw(fused=True)),
        "embedding_bag sparse, SparseAdam": _stock(
            _sparse_bag, lambda table: torch.optim.SparseAdam([table], lr=RATE, betas=BETAS, eps=EPS)
        ),
        "fbgemm-gpu-cpu, row-wise Adagrad": _fbgemm,
        "embedding_bag, torchao CPU offload": _stock(_bag, _torchao_offload),
        "embedding_bag, bitsandbytes 8-bit": _stock(_bag, _eight_bit),
    }
)
_WHOLE: Final = MappingProxyType(
    {"memlayers": _own_whole_layers, "product-key-memory, fused AdamW": _product_key_memory}
)
"""These choose what they read: they are timed against each other, apart from the given reads."""
