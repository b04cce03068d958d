"""How a gate is made, and what came of it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from memlayers.utils.errors import InputError


@dataclass(frozen=True, slots=True)
class GateConfig:
    """How a gate is made. Every field is a flag of ``memlayers gate``.

    Attributes:
        soft: the seed's gate: at every layer its sigmoid multiplies what the memory adds; no subjects, no threshold.
        gate_subjects: it opens behind a stored subject's name, and nowhere else.
        gate_relations: what is asked of a stored subject is compared with what was taught of it.
        gate_threshold: logit above which it is open.
        gate_steps: optimizer steps per gate; of the soft one at most the seed's 1,200.
        general_text: None for the shipped sample, "sampled" for text sampled from the backbone, or a file.
        seed: of everything random.
    """

    soft: bool = False
    gate_subjects: bool = True
    gate_relations: bool = True
    gate_threshold: float = 1.0
    gate_steps: int = 2000
    general_text: str | None = None
    seed: int = 137

    def __post_init__(self) -> None:
        if self.gate_steps < 1:
            raise InputError(f"gate_steps is {self.gate_steps}: it must be at least 1")
