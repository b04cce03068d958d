"""The plan's phases against a real teaching of pocket on a CPU: 200 demo facts, one epoch.

Each case teaches in a process of its own. Before the backbone is loaded the process has imported everything that
teaching uses and compiled its kernels: what it holds then is the libraries', and is left out. The kernel's count of the
peak begins anew with each phase, so that preparation (calibration and gate), steps and the answers that recall is
measured by are each held against their own prediction. Token counts and touched rows are the run's own, so that what is
tested is the arithmetic; how far the plan's estimate of the touched rows is off stands beside it.

Each case is measured twice (`own_process`): where freed blocks are given back, and as it comes.

Leaves ``benchmarks/results/plan_teach.json``. Example: ``python -m benchmarks.performance.plan_teach`` (6 minutes)
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.performance.own_process import forget_peak, measured_twice, memory_bytes
from memlayers import TeachConfig
from memlayers.data.encoding import encode_example
from memlayers.data.general_text import SHIPPED, read_general_text
from memlayers.performance.backbone_size import default_layers, read_backbone
from memlayers.performance.plan import Scheme, Work, phases_on_cpu, touched_rows
from memlayers.teaching.teacher import Teacher
from memlayers.utils.environment import environment

OUT = common.RESULTS / "plan_teach.json"
FACTS = 200
CASES = (
    (256, True, Scheme("float32")),
    (1024, True, Scheme("float32")),
    (1024, False, Scheme("int8", optimizer_device="host")),
)


def main() -> None:
    """Measure every case, twice."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="by number; all if not given")
    parser.add_argument("--facts", type=int, default=FACTS, help="how many are taught")
    parser.add_argument("--out", type=Path, default=OUT, help="the results file")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        print(json.dumps(measure(*CASES[given.case], given.facts)))
        return
    rows = []
    for number in given.cases:
        row, default = measured_twice("benchmarks.performance.plan_teach", number, "--facts", str(given.facts))
        rows.append({**row, "default_malloc_mb": default["measured_mb"], "default_malloc_peak": default["peak"]})
        print(f"case {number}: {row['peak']}; default malloc {default['peak']}; {row['ratio']}", flush=True)
        common.write_json(given.out, {"environment": environment("cpu"), "rows": rows})


class Watched:
    """The peak of each phase of a teaching, and the shapes of its batches, as forward passes show them."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.shapes: list[tuple[int, int, int]] = []
        self._phase: str | None = None
        self._shape = (0, 0)

    def enter(self, phase: str | None) -> None:
        """Ends the phase under way, if it is another one, and begins the next; None begins none."""
        if phase == self._phase:
            return
        if self._phase is not None:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), memory_bytes("VmHWM"))
        self._phase = phase
        forget_peak()

    def watch(self, model: Any) -> None:
        """From now on passes with a gradient are steps, those without are answers.

        A batch is [sequences, tokens]; its logits are only computed where one of them has an answer.
        """

        def embedded(_: Any, args: tuple[Any, ...]) -> None:
            self.enter("step" if torch.is_grad_enabled() else "answers")
            self._shape = tuple(args[0].shape)

        def projected(_: Any, args: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled():
                self.shapes.append((*self._shape, args[0].shape[1]))

        model.get_input_embeddings().register_forward_pre_hook(embedded)
        model.get_output_embeddings().register_forward_pre_hook(projected)


def measure(sub_keys: int, gated: bool, scheme: Scheme, number: int) -> dict[str, Any]:
    """Teach in this process; megabytes are 10^6, without the libraries'."""
    warnings.simplefilter("ignore")  # as the command does
    facts = common.demo_facts(number, seed=0)
    config = TeachConfig().with_flags(
        sub_keys=sub_keys, gate=gated, exposures=1, pool_dtype=scheme.pool_dtype, optimizer=scheme.optimizer,
        optimizer_bits=scheme.optimizer_bits, optimizer_device=scheme.optimizer_device,
        half_rounding=scheme.half_rounding,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        # The libraries' own: a run of the same kind on three facts, in a pool of 64 slots and with little general text.
        general = Path(folder) / "general.jsonl"
        general.write_text("".join(json.dumps({"text": f"It is the year {n}."}) + "\n" for n in range(1900, 1920)))
        few = config.with_flags(sub_keys=8, gate_steps=2, gate_threshold=-100.0, general_text=str(general))
        common.teach(facts[:3], few)
    gc.collect()
    libraries = memory_bytes("VmRSS")
    watched = Watched()
    teacher = Teacher(facts, config, quiet=True)
    teacher.setup()
    watched.enter("preparation")
    teacher.calibrate()
    teacher.build_gate()
    watched.enter(None)
    watched.watch(teacher.model)
    teacher.teach()
    watched.enter(None)
    state = teacher.optimizer.state_dict()["state"][0]
    touched = len(state["rows"]) if "rows" in state else sub_keys**2
    tokenizer = teacher.tokenizer
    contexts = sum(len(encode_example(tokenizer, q, fact.answer).input_ids) for fact in facts for q in fact.questions)
    general_tokens = sum(map(len, read_general_text(SHIPPED).encode(tokenizer, 256)))
    batch, length, answer = max(watched.shapes, key=lambda shape: shape[0] * shape[1])
    backbone = read_backbone("pocket")
    work = Work(
        sub_keys, 8, 8, 64, default_layers(backbone.depth), batch, length, answer, "float32", touched,
        contexts=contexts, general=general_tokens, gated=gated,
    )  # fmt: skip
    predicted = phases_on_cpu(backbone, work, scheme)
    measured = {name: peak - libraries for name, peak in watched.peaks.items()}
    top_predicted, top_measured = max(predicted.values()), max(measured.values())
    return {
        "scheme": scheme.name, "slots": sub_keys**2, "gated": gated, "libraries_mb": libraries / 1e6,
        "predicted_mb": {name: round(value / 1e6, 1) for name, value in predicted.items()},
        "measured_mb": {name: round(value / 1e6, 1) for name, value in measured.items()},
        "ratio": {name: round(predicted[name] / measured[name], 3) for name in predicted},
        "peak": {"predicted_mb": round(top_predicted / 1e6, 1), "measured_mb": round(top_measured / 1e6, 1),
                 "ratio": round(top_predicted / top_measured, 3),
                 "ratio_with_libraries": round((top_predicted + libraries) / (top_measured + libraries), 3)},
        "batch": [batch, length, answer], "context_tokens": contexts, "general_tokens": general_tokens,
        "touched": touched,
        "touched_estimated": touched_rows(sub_keys**2, number, 20, len(work.layers), 64),
    }  # fmt: skip


if __name__ == "__main__":
    common.start(main)
