"""A value pool beyond memory: 16,777,216 slots x 896 bfloat16 (28 GiB) mapped from disk, against 147,456 in memory.

A memory of some facts is taught to Qwen2.5-Coder-0.5B with the usual pool (``memlayers fetch qwen``). The large one is
made from it: the same calibration and gate, 4,096 sub-keys a half, a pool of 28 GiB whose pages all are on the disk
(each row a vector too short to matter); its facts are written by one edit, `Memory.repair`, into the mapped pool. Then,
in a process of its own, both are opened and asked in turn: warm, when the same question has been asked before, and
cold, when no page of the pool is in memory. At last an edit is made and taken back.

Leaves ``benchmarks/results/scale/disk_pool.json``, and both memories in ``runs/disk-pool`` (28 GiB; --remove takes them
away when all is measured). What is there already is not made again.

Example: ``python -m benchmarks.performance.disk_pool --remove`` (an hour on one core, most of it teaching)
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks import common
from benchmarks.performance.own_process import forget_peak, memory_bytes
from memlayers.config.teach import TeachConfig
from memlayers.data.facts import Fact
from memlayers.editing.config import EditConfig
from memlayers.editing.memory import Memory, load_memory
from memlayers.inference.folder import CONFIG_FILE, SLOT_USE_FILE, WEIGHTS_FILE
from memlayers.inference.generation import generate_answers
from memlayers.pool.product_keys import make_sub_keys
from memlayers.pool.weights_file import write_weights
from memlayers.pool.weights_layout import is_pool_tensor
from memlayers.tuner import memory_handle
from memlayers.tuner.config import MemoryConfig
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_directory

OUT = common.RESULTS / "scale" / "disk_pool.json"
WORK = common.WORK / "disk-pool"
FACTS, WORDINGS = 16, 4
SUB_KEYS = 4096


# -- the two memories -------------------------------------------------------------------------------------------------


def facts() -> list[Fact]:
    """The demo's facts, some of them, in fewer wordings than they have."""
    return [replace(fact, questions=fact.questions[:WORDINGS]) for fact in common.demo_facts(FACTS)]


def settings(backbone: str) -> TeachConfig:
    """A teaching that is short: what is measured does not depend on how well it goes."""
    config = TeachConfig().with_flags(
        backbone=backbone, pool_dtype="bfloat16", exposures=8, batch_size=8, gate_steps=200, further=2, device="cpu"
    )
    return replace(config, gate=replace(config.gate, tokens=6_000))


def widen(small: Path, large: Path, sub_keys: int) -> None:
    """A memory with more sub-keys, calibrated and gated as the small one, whose pool holds no fact yet."""
    tensors = load_file(small / WEIGHTS_FILE)
    values = json.loads((small / CONFIG_FILE).read_text())
    values["sub_keys"] = sub_keys
    known = MemoryConfig.__dataclass_fields__
    config = MemoryConfig(**{name: value for name, value in values.items() if name in known})
    layers = iter(config.layers or ())
    for name, tensor in sorted(tensors.items(), key=lambda each: [int(n) for n in each[0].split(".") if n.isdigit()]):
        if name.endswith("memlayers_sub_keys"):
            _, heads, _, half = tensor.shape
            tensors[name] = make_sub_keys(heads, sub_keys, half, config.derived_seed(1, next(layers)))
        elif is_pool_tensor(name):
            row = torch.randn(1, tensor.shape[1], generator=torch.Generator().manual_seed(common.SEED)) * 1e-4
            tensors[name] = row.to(tensor.dtype).expand(sub_keys**2, -1)
    with atomic_directory(large) as folder:
        for path in small.iterdir():
            if path.is_file() and path.name not in (WEIGHTS_FILE, CONFIG_FILE, SLOT_USE_FILE):
                shutil.copyfile(path, folder / path.name)
        (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2))
        write_weights(folder / WEIGHTS_FILE, tensors)


def made(work: Path, backbone: str, sub_keys: int) -> tuple[Path, Path]:
    """The folders of both memories, made as far as they are not there."""
    small, large = work / "memory", work / "large"
    common.taught_memory(facts(), small, settings(backbone))
    if not large.is_dir():
        began = time.perf_counter()
        widen(small, large, sub_keys)
        print(f"written in {time.perf_counter() - began:.0f} s", flush=True)
    with load_memory(large, pool="disk", quiet=False, edits=EditConfig(least_recall=0)) as memory:
        if not memory.journal:
            print(f"repaired: {asdict(memory.repair())['recalled']}", flush=True)
    return small, large


# -- measuring --------------------------------------------------------------------------------------------------------


class Pages:
    """The pages of a mapped pool, as far as they are in memory."""

    def __init__(self, memory: Memory, folder: Path) -> None:
        mapped = memory_handle(memory.model).pool.mapped
        assert mapped is not None
        self._mapped, self._path = mapped, folder / WEIGHTS_FILE

    def drop(self) -> None:
        """Has none of them be in memory."""
        self._mapped.drop_written(None, self._path)
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """How long it takes, and how long this process computes for it: other work on the machine is in the first alone."""
    began, computed = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - began, time.process_time() - computed


def written_bytes() -> int:
    """What this process has written into files."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def spread(taken: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median and quartiles, in milliseconds, and the median of what was computed."""
    ordered = sorted(wall for wall, _ in taken)
    return {
        "median_ms": 1e3 * median(ordered),
        "low_ms": 1e3 * ordered[len(ordered) // 4],
        "high_ms": 1e3 * ordered[-1 - len(ordered) // 4],
        "cpu_ms": 1e3 * median(cpu for _, cpu in taken),
    }


def ratio(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The median of what the other takes to what the first takes, turn by turn."""
    pairs = list(zip(one, other, strict=True))
    return {"wall": median(b[0] / a[0] for a, b in pairs), "cpu": median(b[1] / a[1] for a, b in pairs)}


def least_cpu_ms(work: Callable[[], Any], repeats: int = 20) -> float:
    """What is computed for it at least, in milliseconds, of five goes."""
    work()
    goes = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(repeats):
            work()
        goes.append(time.process_time() - began)
    return 1e3 * min(goes) / repeats


@torch.inference_mode()
def parts(memory: Memory) -> dict[str, float]:
    """What one token costs a layer: choosing slots, asking for them, summing their rows; and its MLP block."""
    handle = memory_handle(memory.model)
    layer, pool = handle.layers[0], handle.pool
    block = next(layer.base_layer.parameters())
    x = torch.randn(1, 1, layer.dim, generator=torch.Generator().manual_seed(common.SEED)).to(block.dtype)
    read = layer.read(x[0], handle.adapter)
    found = {
        "choose_ms": least_cpu_ms(lambda: layer.read(x[0], handle.adapter)),
        "rows_ms": least_cpu_ms(lambda: pool(read.indices, read.weights, block.dtype)),
        "mlp_ms": least_cpu_ms(lambda: layer.base_layer(x)),
    }
    if (mapped := pool.mapped) is not None:
        found["ask_for_ms"] = least_cpu_ms(lambda: mapped.fetch(read.indices))
    return found


def cold_rows(memory: Memory, pages: Pages) -> list[dict[str, Any]]:
    """Rows that are not in memory: one page fault after the other, asked for at once, and read by eight threads."""
    pool = memory_handle(memory.model).pool
    table, mapped = pool.table, pool.mapped
    assert mapped is not None
    generator, found = torch.Generator().manual_seed(common.SEED), []

    def at_once(rows: torch.Tensor) -> None:
        mapped.fetch(rows)
        one_by_one(rows)

    def one_by_one(rows: torch.Tensor) -> None:
        table.values[rows].float().sum()

    def by_threads(rows: torch.Tensor) -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one_by_one, rows.split(1)))

    for count in (64, 768):
        taken: dict[str, list[float]] = {}
        for _ in range(9):
            for work in (one_by_one, at_once, by_threads):
                rows = torch.randint(0, pool.slots, (count,), generator=generator)
                pages.drop()
                taken.setdefault(work.__name__, []).append(seconds(work, rows)[0])
        found.append({"rows": count} | {f"{name}_ms": 1e3 * median(each) for name, each in taken.items()})
    return found


def measured(small: Path, large: Path, rounds: int) -> dict[str, Any]:
    """Everything that is measured, of both memories, in this process."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    in_memory = load_memory(small)
    gc.collect()
    held = memory_bytes("RssAnon")
    forget_peak()
    began = time.perf_counter()
    with load_memory(large, pool="disk", edits=EditConfig(least_recall=0)) as mapped:
        found["open_seconds"] = time.perf_counter() - began
        found["open_rss_anon"] = memory_bytes("RssAnon") - held
        pool, pages = memory_handle(mapped.model).pool, Pages(mapped, large)
        found["slots"], found["dim"] = pool.slots, pool.dim
        found["pool_bytes"] = pool.table.values.nbytes
        stored = facts()
        questions = [fact.questions[0] for fact in stored]
        both = {"memory": in_memory, "disk": mapped}
        for memory in both.values():
            memory.ask(questions[0])
        found["parts"] = {name: parts(memory) for name, memory in both.items()}
        found["cold_rows"] = cold_rows(mapped, pages)
        warm: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
        generated: dict[str, list[tuple[float, float]]] = {name: [] for name in both}
        cold: list[tuple[float, float]] = []
        right = dict.fromkeys(both, 0)
        for turn in range(rounds):
            question = questions[turn % len(questions)]
            pages.drop()
            cold.append(seconds(mapped.ask, question))
            for name in sorted(both, reverse=bool(turn % 2)):
                memory = both[name]
                answer = memory.ask(question)
                right[name] += answer.memory.strip() == stored[turn % len(questions)].answer
                warm[name].append(seconds(memory.ask, question))
                generated[name].append(seconds(generate_answers, memory.model, memory.tokenizer, [question]))
        found["ask_warm"] = {name: spread(taken) for name, taken in warm.items()}
        found["ask_cold"] = spread(cold)
        found["generate_warm"] = {name: spread(taken) for name, taken in generated.items()}
        found["ratio_warm"] = ratio(warm["memory"], warm["disk"])
        found["ratio_generate"] = ratio(generated["memory"], generated["disk"])
        found["ratio_cold"] = ratio(warm["memory"], cold)
        found["right"] = {name: f"{count} of {rounds}" for name, count in right.items()}
        edits = []
        mapped.prepare()
        for person in ("Ada Pryce", "Ines Marlow"):
            before, size = written_bytes(), (large / WEIGHTS_FILE).stat().st_ino
            report = mapped.update([replace(stored[0], answer=person, aliases=())])
            assert (large / WEIGHTS_FILE).stat().st_ino == size  # no new file
            edits.append(
                {"seconds": report.seconds, "saving": report.saving, "slots": report.slots, "steps": report.steps,
                 "neighbours": report.neighbours, "written_bytes": written_bytes() - before}
            )  # fmt: skip
        undone = [mapped.undo(), mapped.undo()]
        found["edits"] = edits
        found["undo"] = [{"seconds": each.seconds, "saving": each.saving} for each in undone]
        found["peak_rss"], found["rss_anon"] = memory_bytes("VmHWM"), memory_bytes("RssAnon")
        found["rss_file"] = memory_bytes("RssFile")
    return found


def main() -> None:
    """Make both memories, and measure in a process of its own."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where the memories are made")
    parser.add_argument("--backbone", default="qwen", help="a backbone")
    parser.add_argument("--sub-keys", type=int, default=SUB_KEYS, help="of the large memory, a half")
    parser.add_argument("--rounds", type=int, default=16, help="questions asked")
    parser.add_argument("--out", type=Path, default=OUT, help="the results file")
    parser.add_argument("--remove", action="store_true", help="take the large memory away at the end")
    parser.add_argument("--case", action="store_true", help="measure, in this process, what is there")
    arguments = parser.parse_args()
    small, large = arguments.work / "memory", arguments.work / "large"
    if arguments.case:
        print(json.dumps(measured(small, large, arguments.rounds)))
        return
    made(arguments.work, arguments.backbone, arguments.sub_keys)
    command = [sys.executable, "-m", "benchmarks.performance.disk_pool", "--case", "--work", str(arguments.work)]
    done = subprocess.run(
        [*command, "--rounds", str(arguments.rounds)], cwd=common.ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    common.write_json(arguments.out, {"environment": environment("cpu"), **found})
    print(json.dumps(found, indent=1))
    if arguments.remove:
        shutil.rmtree(large)


if __name__ == "__main__":
    common.start(main)
