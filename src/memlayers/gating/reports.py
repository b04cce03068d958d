"""How a gate and a relation check do on what they were not made from. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateReport:
    """How one layer's gate does on tokens it was not trained on.

    Attributes:
        threshold: on the gate's logit.
        open_on_facts: share of held-out fact tokens it opens for.
        open_on_general: share of held-out general tokens it opens for.
    """

    threshold: float
    open_on_facts: float
    open_on_general: float


@dataclass(frozen=True, slots=True)
class RelationReport:
    """How the check of what is asked does on wordings that its keys were not made from.

    Attributes:
        threshold: on the cosine.
        accepted_stored: share of the facts' own questions that pass.
        accepted_others: share of questions for something else that was not taught of their subject.
    """

    threshold: float
    accepted_stored: float
    accepted_others: float
