"""What teaching did, and the record of it that is kept with a memory. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memlayers.config.teach import TeachConfig, config_from_record
from memlayers.inference.folder import TEACHING_FILE
from memlayers.utils.errors import InputError
from memlayers.utils.files import read_text


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


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage of teaching took.

    Attributes:
        seconds: wall clock.
        cpu_seconds: of all threads.
        tokens: of the texts that went through the backbone, padding left out, and of the steps what all of them begin
            with; 0 where none are counted.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class NotHeld:
    """A fact that is not answered rightly in every taught wording.

    Attributes:
        id: the fact's.
        question: its first wording that is answered wrongly.
        answer: what was taught.
        given: what is answered instead.
        wrong: how many of its taught wordings are answered wrongly.
        wordings: how many it has.
    """

    id: str
    question: str
    answer: str
    given: str
    wrong: int
    wordings: int


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores measured during teaching, after `exposures` exposures per fact; None where not measured then.

    `loss` is the last epoch's, in nats per counted token, each step's before it is taken.
    """

    exposures: float
    recall: float
    perplexity: float | None = None
    known_facts: float | None = None
    loss: float | None = None


@dataclass(slots=True)
class TeachReport:
    """What teaching did.

    Attributes:
        steps: optimizer steps taken.
        exposures: how often each fact was shown; facts that were taught further have been shown more often.
        recall: last recall measured on taught phrasings; in free generation, once teaching has ended.
        skipped_steps: steps left out because the loss or a gradient was not finite.
        seconds: wall clock of calibration, gate and teaching, evaluations along the way left out.
        gates: one report per gate.
        relations: of the check of what is asked; None where there is none.
        thresholds: the least confidence of a memory's answer and of the backbone's; None where not settled.
        curve: scores after each epoch.
        stages: what each stage took, by name, in their order.
        checks: how many facts each check found that were not held in every taught wording. A round of teaching further
            followed where there were some.
        not_held: the facts that are not held at the end.
    """

    steps: int = 0
    exposures: float = 0.0
    recall: float = 0.0
    skipped_steps: int = 0
    seconds: float = 0.0
    gates: list[GateReport] = field(default_factory=list)
    relations: RelationReport | None = None
    thresholds: tuple[float, float] | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    stages: dict[str, StageReport] = field(default_factory=dict)
    checks: list[int] = field(default_factory=list)
    not_held: list[NotHeld] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TeachReport:
        """The report that ``dataclasses.asdict`` took apart."""
        gates = [GateReport(**gate) for gate in values["gates"]]
        curve = [CurvePoint(**point) for point in values["curve"]]
        thresholds = tuple(values["thresholds"]) if values.get("thresholds") else None
        relations = RelationReport(**values["relations"]) if values.get("relations") else None
        stages = {name: StageReport(**stage) for name, stage in values.get("stages", {}).items()}
        read = {"gates": gates, "curve": curve, "thresholds": thresholds, "relations": relations, "stages": stages}
        read["not_held"] = [NotHeld(**fact) for fact in values.get("not_held", ())]
        return cls(**{**values, **read})


@dataclass(frozen=True, slots=True)
class Teaching:
    """What is kept beside a memory: how many facts, how, where, and what came of it."""

    facts: int
    config: TeachConfig | None
    environment: dict[str, Any]
    report: TeachReport


def write_teaching(folder: Path, teaching: Teaching) -> None:
    """Writes the record into a memory's folder."""
    (folder / TEACHING_FILE).write_text(json.dumps(asdict(teaching), indent=1) + "\n", encoding="utf-8")


def read_teaching(folder: str | Path) -> Teaching | None:
    """Reads the record of a memory's folder; None where there is none (a memory that Trainer taught, say).

    Raises:
        InputError: it is damaged.
    """
    path = Path(folder) / TEACHING_FILE
    if not path.is_file():
        return None
    try:
        read = json.loads(read_text(path))
        return Teaching(
            read["facts"],
            None if read["config"] is None else config_from_record(read["config"]),
            read["environment"],
            TeachReport.from_dict(read["report"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged record ({error}); delete it or restore a copy of the memory") from error
