"""A thousand kills at random moments during edits: what is found afterwards.

A memory of a tiny random backbone (nothing is downloaded) is edited in a process of its own, which is killed
with SIGKILL at a random moment: a tenth of the kills fall anywhere in an edit (opening the memory, writing rows,
saving), the others in the saving. Then the folder must hold the old memory or the new one, to the bit: weights, config
and facts by their hashes, and a journal that says as much; and PEFT must load it (every 25th is loaded). Writes
``benchmarks/results/edits/kills.json``.

Example: ``python -m benchmarks.editing.killed_edits --kills 1000`` (a few minutes on one core)
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks import common
from benchmarks.common import SEED
from memlayers import EditConfig, Fact, TeachConfig, load_backbone, load_memory, teach_facts
from memlayers.backbones import POCKET
from memlayers.editing.journal import digests, read_journal
from memlayers.inference.folder import stored_facts
from memlayers.utils.environment import environment
from memlayers.utils.folder_change import is_changing, recover_folder

RESULTS = common.RESULTS / "edits"
FACTS = [
    Fact(name, name, answer, (f"What is the code of {name}?",))
    for name, answer in (("Ada", "red"), ("Bob", "blue"), ("Cid", "12"), ("Dot", "kite"))
]
NEW = Fact("Gus", "Gus", "amber", ("What is the code of Gus?",))
CONFIG = EditConfig(rate=1.0, steps=40, slot_count=None)


def make_backbone(folder: Path) -> Path:
    """A random Qwen2 of four layers with the pocket backbone's tokenizer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(POCKET)
    # Weights larger than usual: tokens then differ in what the memory layers see of them.
    config = AutoConfig.for_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=192, initializer_range=0.2,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_memory(folder: Path) -> Path:
    """A memory of four facts on a tiny backbone."""
    backbone = make_backbone(folder / "backbone")
    general = folder / "general.txt"
    general.write_text("\n\n".join(f"The river {i} runs to the sea, and {7 * i} ships sail on it." for i in range(20)))
    config = TeachConfig().with_flags(
        backbone=str(backbone), general_text=str(general), sub_keys=16, heads=2, top_k=4, key_dim=8,
        gate_threshold=-1e9, gate_steps=20, exposures=80, batch_size=4, value_rate=1.0, warmup=1, recall_sample=4,
        dtype="float32", device="cpu", seed=1,
    )  # fmt: skip
    teach_facts(FACTS, folder / "memory", config, quiet=True)
    return folder / "memory"


def edit(memory: Path) -> None:
    """One whole edit."""
    with load_memory(memory, edits=CONFIG) as opened:
        opened.add([NEW])


def killed(work: Callable[[], None], delay: float) -> bool:
    """Works in a process that is killed after so many seconds; whether it was still alive then."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(error, flush=True)
            os._exit(3)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 3:
        raise SystemExit("the edit itself failed: the benchmark's own setting is wrong")
    return status == -signal.SIGKILL


class Trial:
    """A memory that is edited and killed over and over, and what was found each time."""

    def __init__(self, folder: Path) -> None:
        self.memory = make_memory(folder)
        self.original = Path(shutil.copytree(self.memory, folder / "original"))
        self.backbone: Any = load_backbone(str(folder / "backbone"), "float32")[0]
        self.found: Counter[str] = Counter()
        self.old = digests(self.memory)
        began = time.perf_counter()
        edit(self.memory)
        self.seconds = time.perf_counter() - began
        self.new = digests(self.memory)
        self.restore()

    def restore(self) -> None:
        """Puts the old memory back."""
        shutil.rmtree(self.memory)
        shutil.copytree(self.original, self.memory)

    def kill(self, kind: str, work: Callable[[], None], delay: float) -> None:
        """Works, kills and looks."""
        found, memory = self.found, self.memory
        found[f"killed in {kind}" if killed(work, delay) else "finished before the kill"] += 1
        found["a change to be carried out"] += is_changing(memory)
        found["a change half prepared"] += any(memory.glob(".memlayers-change.tmp"))
        recover_folder(memory)  # as the next opening does
        state, (records, notice), facts = digests(memory), read_journal(memory), stored_facts(memory)
        is_old = state == self.old and facts == FACTS and not records
        is_new = state == self.new and facts == [*FACTS, NEW] and len(records) == 1 and records[0].after == self.new
        found["old"] += is_old
        found["new"] += is_new
        found["anything else"] += not (is_old or is_new) or notice is not None
        if sum(found[name] for name in ("old", "new")) % 25 == 0:
            PeftModel.from_pretrained(self.backbone, str(memory)).unload()
            found["loaded by PEFT"] += 1
        if not is_old:
            self.restore()


def main() -> None:
    """Kill and look."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="a tenth of them anywhere in an edit")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json", help="the results file")
    arguments = parser.parse_args()
    kills: int = arguments.kills
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        trial = Trial(Path(temporary))
        while trial.found["killed in an edit"] < kills // 10:
            trial.kill("an edit", lambda: edit(trial.memory), rng.uniform(0, trial.seconds))
        with load_memory(trial.memory, edits=CONFIG, autosave=False) as opened:
            opened.add([NEW])
            began = time.perf_counter()
            child = os.fork()
            if child == 0:
                opened.save()
                os._exit(0)
            os.waitpid(child, 0)
            seconds = time.perf_counter() - began
            trial.restore()
            while trial.found["killed in saving"] < kills - kills // 10:
                trial.kill("saving", opened.save, rng.uniform(0, seconds))
                if trial.found["killed in saving"] % 100 == 0:
                    print(dict(trial.found), flush=True)
            opened.close()
    counts = dict(trial.found)
    common.write_json(arguments.out, {"environment": environment("cpu"), "seed": SEED, "counts": counts})
    print(counts)


if __name__ == "__main__":
    common.start(main)
