"""What each stage of a teaching takes: wall clock, processor time, tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from memlayers.inference.record import StageReport


class Stages:
    """Adds up what stages take, by name. A stage within another one counts for itself alone.

    Args:
        found: what they took before, in a run that is resumed.
    """

    def __init__(self, found: dict[str, StageReport] | None = None) -> None:
        self.found = dict(found or {})
        self._under_way: list[str] = []
        self._since = (0.0, 0.0)

    @contextmanager
    def stage(self, name: str, tokens: int = 0) -> Iterator[None]:
        """A context whose time, and so many tokens, are counted for a stage."""
        self._count()
        self._under_way.append(name)
        self.add(name, 0.0, 0.0, tokens)
        try:
            yield
        finally:
            self._count()
            self._under_way.pop()

    def add(self, name: str, seconds: float, cpu_seconds: float, tokens: int) -> None:
        """Counts what a stage took."""
        before = self.found.get(name, StageReport())
        self.found[name] = StageReport(
            before.seconds + seconds, before.cpu_seconds + cpu_seconds, before.tokens + tokens
        )

    def _count(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._under_way:
            self.add(self._under_way[-1], now[0] - self._since[0], now[1] - self._since[1], 0)
        self._since = now


def stages_table(found: dict[str, StageReport]) -> str:
    """The stages as lines of text: seconds, processor seconds and their share, tokens through the backbone."""
    whole = sum(stage.cpu_seconds for stage in found.values()) or 1.0
    lines = [f"{'stage':<14}{'seconds':>9}{'CPU s':>9}{'share':>8}{'tokens':>10}"]
    for name, stage in found.items():
        share, tokens = stage.cpu_seconds / whole, f"{stage.tokens:,}" if stage.tokens else "-"
        lines.append(f"{name:<14}{stage.seconds:>9.1f}{stage.cpu_seconds:>9.1f}{share:>8.0%}{tokens:>10}")
    return "\n".join(lines)
