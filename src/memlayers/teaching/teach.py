"""`teach_facts`: from facts to a memory in a folder, in one call."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from memlayers.config.teach import TeachConfig
from memlayers.data.fact_files import facts_text
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.inference.folder import FACTS_FILE
from memlayers.teaching.folders import check_folders, work_folder
from memlayers.teaching.teacher import Teacher, Watch
from memlayers.utils.errors import InputError
from memlayers.utils.ranks import join_ranks


def teach_facts(
    facts: Sequence[Fact],
    out: str | Path,
    config: TeachConfig | None = None,
    *,
    resume: bool = False,
    replace: bool = False,
    gate_facts: Sequence[Fact] | None = None,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Memory:
    """Teaches facts to a frozen backbone and saves the memory as an adapter folder.

    Calibrates addressing and trains the gate on the bare backbone, then writes values until recall is full or the
    exposures are over. Then every fact is asked in every taught wording, and those that are not held are taught
    further; what is not held even then, the report names (`TeachReport.not_held`). Unfinished work lives in
    ``OUT.teaching`` beside `out`; `out` itself appears in one piece at the end.

    Several processes that ``torchrun`` or ``accelerate launch`` started teach one memory together: each calls this
    function, with the same arguments, and the first one writes (docs/scale.md).

    Args:
        facts: at least one.
        out: folder of the adapter.
        config: how; None for the defaults.
        resume: continue an interrupted run of the same configuration and facts.
        replace: an existing `out` may be replaced.
        gate_facts: those of the facts that the gate's network and the thresholds are made from; None for all. All are
            taught, and indexed by their subjects: how a gate does on kinds of facts that it never saw.
        watch: measures more for the curve after each epoch; called in the first process.
        quiet: no progress bars.

    Returns:
        The memory, ready to be asked and edited; `Memory.teaching` is the record of what was done.

    Raises:
        InputError: no facts, a question longer than the context, a folder in the way, another run's checkpoint;
            processes that were given different facts or settings.
        WorkError: the loss is not finite for many steps in a row; a process of the job is gone.
    """
    config = config or TeachConfig()
    ranks = join_ranks(config.machine.device)
    with ranks.ending_together(f"; --resume goes on from what is saved in {work_folder(out)}"):
        if not facts:
            raise InputError("no facts to teach: give at least one")
        if ranks.first:
            check_folders(out, resume=resume, replace=replace)
        work = work_folder(out)
        teacher = Teacher(facts, config, work, gate_facts=gate_facts, watch=watch, quiet=quiet, ranks=ranks)
        teacher.setup()
        if config.data.keep_facts:
            facts_text(Path(out) / FACTS_FILE, facts)  # what could not be read back is told before the work
        if not teacher.restore():
            teacher.calibrate()
            teacher.build_gate()
        teacher.teach()
        teacher.hold()
        teacher.settle()
        teacher.save(out, replace=replace)
        if ranks.first:
            shutil.rmtree(work, ignore_errors=True)
        ranks.meet()
        return Memory(teacher.model, teacher.tokenizer, out)
