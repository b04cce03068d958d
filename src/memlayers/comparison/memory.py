"""A memory, as `memlayers teach` makes it; the addressed recipe, or the dense one."""

from __future__ import annotations

from collections.abc import Sequence

from memlayers.comparison.method import MOST_EXPOSURES, Method
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory
from memlayers.inference.folder import FACTS_FILE, WEIGHTS_FILE
from memlayers.teaching.teach import teach_facts


class TaughtMemory(Method):
    """A memory; its settings are those of the comparison."""

    memory: Memory

    def teach(self, facts: Sequence[Fact]) -> None:
        """Teaches them."""
        self.memory = teach_facts(facts, self.work, self.config, quiet=self.quiet)
        self.model, self.tokenizer = self.memory.model, self.memory.tokenizer
        report = self.memory.report
        self.tokens = sum(stage.tokens for stage in report.stages.values())
        further = f", {report.checks[0]} of the facts not held then, taught further" if len(report.checks) > 1 else ""
        self.note = f"{report.exposures:g} exposures{further}"

    def update(self, fact: Fact) -> None:
        """As `memlayers update`, saved."""
        self.memory.update([fact])

    def stored_bytes(self) -> int:
        """Its weights and its facts."""
        files = (self.work / name for name in (WEIGHTS_FILE, FACTS_FILE))
        return sum(path.stat().st_size for path in files if path.is_file())


class DenseMemory(TaughtMemory):
    """The v0.2 reference recipe, with as many exposures as LoRA has at most: its own default is fewer."""

    def teach(self, facts: Sequence[Fact]) -> None:
        """Teaches them."""
        self.config = self.config.with_flags(recipe="dense", exposures=MOST_EXPOSURES)
        super().teach(facts)
