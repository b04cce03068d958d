from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from memlayers.backbones import POCKET
from memlayers.performance import bench as run
from memlayers.performance.figures import Bench, Clock, Shape, Timing, bench_text, read_bench, write_bench
from memlayers.performance.overhead import LARGE
from memlayers.performance.peers import peer_steps
from memlayers.performance.reads import make_reads
from memlayers.performance.report import ratios, table_rows, write_bench_report
from memlayers.performance.stages import memory_stages
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError, WorkError

SMALL = Shape(slots=400, dim=24, tokens=20, heads=2, top_k=4, layers=3)
ROOFS = {"sequential": 10.0, "random rows": 10.0, "update rows": 10.0, "matmul": 100.0}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
def test_reads_are_seeded_and_of_their_kind(kind: str) -> None:
    reads, again, other = (make_reads(SMALL, kind, CPU, seed) for seed in (1, 1, 2))
    assert [each.shape for each in reads.indices] == [(20, 8)] * 3
    assert all(0 <= each.min() and each.max() < 400 for each in reads.indices)
    assert torch.equal(reads.indices[0], again.indices[0]) and not torch.equal(reads.indices[0], other.indices[0])
    most = torch.cat(reads.indices).flatten().bincount().max() / 480
    assert (most > 0.08) == (kind == "zipf")  # the first of 400 has a share of 1 / 6.6
    torch.testing.assert_close(reads.weights[0].sum(-1), torch.ones(20))


@pytest.mark.skipif(not (POCKET / "model.safetensors").is_file(), reason="the pocket backbone has no weights yet")
@pytest.mark.usefixtures("less_general_text")
def test_real_reads_come_from_the_memory_layers() -> None:
    shape = Shape(slots=1024, dim=8, tokens=50, heads=2, top_k=4, layers=4)
    reads = make_reads(shape, "real", CPU, 1)
    assert [each.shape for each in reads.indices] == [(50, 8)] * 4
    assert all(0 <= each.min() and each.max() < 1024 for each in reads.indices)
    assert torch.equal(reads.indices[0], reads.indices[3]) and not torch.equal(reads.indices[0], reads.indices[1])
    head = reads.indices[0][:, :4]
    assert all(len(row.unique()) == 4 for row in head)  # a head reads distinct slots


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long), "int8"])
def test_every_stage_is_timed_and_agrees_with_float64(dtype: str) -> None:
    shape = Shape(slots=400, dim=24, tokens=20, heads=2, top_k=4, layers=3, dtype=dtype)
    reads = make_reads(shape, "uniform", CPU, 1)
    timings = list(memory_stages(shape, "uniform", reads, Clock(CPU, 2), ROOFS))
    stages = [timing.stage for timing in timings]
    assert stages[:2] == ["top-k", "top-k"] and stages[-2:] == ["teaching step, dense", "teaching step, lazy"]
    assert {"forward", "weight gradient (dense recipe)", "invert", "gradient norm (clipping)"} <= set(stages)
    assert {"fused step, 32-bit state", "fused step, 8-bit state", "catching up one missed step"} <= set(stages)
    compared = {timing.stage: timing.error for timing in timings if timing.error is not None}
    assert set(compared) == {"top-k", "forward", "weight gradient (dense recipe)", "fused step, 32-bit state"}
    assert max(compared.values()) < 1e-5
    for timing in timings:
        assert 0 < timing.ms_low <= timing.ms <= timing.ms_high
        if timing.roof:
            assert timing.roof_share == pytest.approx(timing.gb_per_s / 10)


def test_peers_take_the_same_step() -> None:
    found = list(peer_steps(SMALL, "uniform", make_reads(SMALL, "uniform", CPU, 1), Clock(CPU, 1)))
    names = {timing.variant for timing in found}
    assert {"gather + einsum, AdamW", "embedding_bag, fused AdamW", "embedding_bag sparse, SparseAdam"} <= names
    assert all(timing.stage in ("teaching step", "whole layers") and timing.ms > 0 for timing in found)


@pytest.fixture
def figures() -> Bench:
    def timing(stage: str, variant: str, ms: float, **more: Any) -> Timing:
        values: dict[str, Any] = {
            "indices": "uniform", "ms_low": ms, "ms_high": ms, "bytes": 0, "flops": 0, "roof": "", "roof_share": None,
            "unique_ratio": 0.5, "error": None, "peak_bytes": None, "malloc": "default", "shape": SMALL,
        }  # fmt: skip
        return Timing(stage, variant, ms=ms, **{**values, **more})

    forward = timing("forward", "memlayers", 2.0, bytes=8_000_000, flops=1000, roof="random rows", roof_share=0.4)
    steps = [timing("teaching step, dense", "memlayers", 4.0), timing("teaching step", "a peer", 20.0)]
    return Bench(environment("cpu"), {"default": ROOFS}, [forward, *steps], {"pocket_step": 0.25, "x_ms": 1.0})


def test_the_file_the_table_and_the_plot(figures: Bench, tmp_path: Path) -> None:
    write_bench(tmp_path / "bench.json", figures)
    assert read_bench(tmp_path / "bench.json") == figures
    assert json.loads(bench_text(figures))["timings"][0]["gb_per_s"] == 4.0
    assert list(ratios(figures)) == [("default", "uniform", "dense", "a peer", 5.0)]
    assert next(table_rows(figures.timings))[3:8] == ["2.00", "8", "4.0", "40% of random rows", "0.50"]
    write_bench_report(tmp_path / "bench.json", tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert "| default | uniform | dense | a peer | 5.0 |" in text and "| pocket_step | 25.00% |" in text
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"schema": "memlayers.results/1"}')
    with pytest.raises(InputError, match="run the bench again"):
        read_bench(tmp_path / "bench.json")


def test_a_whole_run_measures_each_allocator_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is; what the first one does happens in this process, where all is imported."""
    ran: list[tuple[str, dict[str, str]]] = []
    real = run._in_process

    def watched(what: str, settings: dict[str, Any], variables: Any) -> dict[str, Any]:
        ran.append((what, dict(variables)))
        if what == "overhead":
            return {"pocket_step": 0.1}
        if not variables:
            found: dict[str, Any] = json.loads(json.dumps(run._worker(what, json.loads(json.dumps(settings)))))
            return found
        return real(what, settings, variables)

    monkeypatch.setattr(run, "_in_process", watched)
    bench = run.run_bench(SMALL, indices=["uniform"], peers=False, repeats=1)
    assert [what for what, _ in ran] == ["measure", "measure", "overhead"]
    assert "MALLOC_MMAP_MAX_" not in ran[0][1] and ran[1][1]["MALLOC_MMAP_MAX_"] == "0"
    assert set(bench.roofs) == {"default", "retained"} == {timing.malloc for timing in bench.timings}
    assert all(value > 0 for roofs in bench.roofs.values() for value in roofs.values())
    assert bench.overhead == {"pocket_step": 0.1}


@pytest.mark.parametrize(
    ("shape", "indices", "message"),
    [
        (Shape(slots=500), ["uniform"], "500 slots are not a square.*take 484"),
        (Shape(slots=16, top_k=8), ["uniform"], "top_k 8 exceeds the 4 sub-keys"),
        (Shape(dtype="float8"), ["uniform"], "take float32, bfloat16 or int8"),
        (SMALL, ["gauss"], "indices gauss: take some of uniform, zipf, real"),
        (SMALL, [], "indices none"),
        (Shape(tokens=0), ["uniform"], "tokens is 0"),
    ],
)
def test_what_cannot_be_measured_is_said(shape: Shape, indices: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run.run_bench(shape, indices=indices)


def test_a_process_that_fails_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkError, match="exit code"):
        run._in_process("measure", {}, {"PYTHONHOME": "/nowhere"})  # ends as it starts
    assert capfd.readouterr().err  # the process's own message


def test_the_large_backbones_shape_is_shipped() -> None:
    config = json.loads(LARGE.read_text(encoding="utf-8"))
    assert (config["hidden_size"], config["num_hidden_layers"]) == (3584, 28)
