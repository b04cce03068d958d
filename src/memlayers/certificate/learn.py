"""Tables and documents to a memory that answers what they say: read, check, teach what has changed, ask, certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memlayers.certificate.certificate import Asked, Certificate, Certified, Change
from memlayers.certificate.difference import Difference, difference
from memlayers.certificate.page import certificate_page
from memlayers.certificate.steps import steps
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import contains_answer, exact_match, token_f1
from memlayers.data.facts import Fact
from memlayers.editing.memory import Memory, load_memory
from memlayers.evaluation.statistics import Estimate, mean_interval
from memlayers.inference.folder import CONFIG_FILE
from memlayers.inference.generation import answer_questions
from memlayers.sources.checks import check, fixed
from memlayers.sources.claims import Extraction, LeftOut
from memlayers.sources.findings import KINDS
from memlayers.sources.reading import ReadOptions, named, read_sources
from memlayers.teaching.teach import teach_facts
from memlayers.tuner.handle import without_memory
from memlayers.utils.environment import environment
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, atomic_write_text
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from memlayers.sources.writer_answers import Answers

CERTIFICATE_FILE: Final = "certificate.json"
PAGE_FILE: Final = "certificate.html"
_DOING: Final = {"forget": "Forgetting", "update": "Updating", "add": "Adding", "sources": "Noting sources"}


def learn(
    places: Sequence[StrPath],
    out: StrPath,
    config: TeachConfig | None = None,
    *,
    options: ReadOptions | None = None,
    writer: Answers | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> tuple[Memory, Certificate]:
    """Has a memory hold what tables and documents state, and certifies it.

    A memory that is not there yet is taught. One that is gets the difference alone, by edits in its journal: facts that
    are new are added, those with another answer updated, those that are stated no more forgotten. What was stored by
    hand or from other sources is left alone. Then every fact of the sources is asked in its wordings that were never
    taught. ``OUT/certificate.json`` and ``OUT/certificate.html`` say all of it.

    Args:
        places: facts files, tables, addresses of databases, documents.
        out: the memory's folder; one that is there is edited.
        config: how a new memory is taught; None for the defaults.
        options: how the files are read.
        writer: makes the facts of documents, in place of rules.
        resume: continue the interrupted teaching of the same sources and configuration.
        quiet: no progress bars.

    Returns:
        The memory and the certificate.

    Raises:
        InputError: a file cannot be read, no fact is found, or the memory cannot be taught or edited.
        WorkError: the writer or the teaching failed, or an edit was refused; edits made before it are kept.
    """
    config, options, out = config or TeachConfig(), options or ReadOptions(), Path(out)
    found = read_sources(places, options, writer)
    documents = named(places, found.passages)
    memory = None
    if (out / CONFIG_FILE).is_file():
        memory = load_memory(out, device=config.machine.device, dtype=config.machine.dtype, quiet=quiet, lazy=True)
    found = checked(found, others(memory.facts, found, documents) if memory is not None else ())
    if not found.facts:
        why = ", ".join(f"{number:,} {each}" for each, number in Certificate(left_out=found.left_out).reasons.items())
        raise InputError(f"{', '.join(map(str, places))}: no facts in {len(found.passages):,} passages ({why})")
    told = difference(memory.facts if memory is not None else (), found.facts, documents)
    if memory is None:
        memory = teach_facts(found.facts, out, config, resume=resume, quiet=quiet)
    else:
        _edit(memory, told, quiet=quiet)
    certificate = certify(memory, found, told, config.seed, quiet=quiet)
    read = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    model = None if writer is None else writer.writer.model
    certificate.settings = {"sources": list(map(str, places)), **read, "writer": model, "seed": config.seed}
    certificate.environment = environment(str(memory.model.device))
    atomic_write_text(out / CERTIFICATE_FILE, certificate.text())
    atomic_write_text(out / PAGE_FILE, certificate_page(certificate, str(out)))
    return memory, certificate


def checked(found: Extraction, others: Sequence[Fact] = ()) -> Extraction:
    """What is left of facts after the checks (`sources.checks`), with what was left out.

    Facts that contradict each other or others, that their evidence does not hold, or that are too long are left out;
    duplicates are made one.

    Args:
        found: the facts.
        others: that a memory holds beside them.
    """
    report = check(found.facts, memory=others or None)
    left, did = fixed(found.facts, report)
    why = {each.id: each.kind for each in did if each.dropped and each.kind != "duplicate"}
    why |= {id: finding.kind for finding in report.of("update") for id in finding.ids}
    left = [fact for fact in left if fact.id not in why]
    dropped = [
        LeftOut(source, KINDS[why[fact.id]].title) for fact in found.facts if fact.id in why for source in fact.sources
    ]
    return Extraction(left, found.passages, [*found.left_out, *dropped])


def others(stored: Sequence[Fact], found: Extraction, documents: set[str]) -> list[Fact]:
    """The stored facts that are neither found nor from these documents: told by hand, or from other sources."""
    ids = {fact.id for fact in found.facts}
    return [
        fact for fact in stored
        if fact.id not in ids and not any(source.document in documents for source in fact.sources)
    ]  # fmt: skip


def _edit(memory: Memory, told: Difference, *, quiet: bool) -> None:
    """Tells a memory what has changed; each edit is saved by itself, so that an interrupted call goes on."""
    try:
        for step in steps(told):
            with progress_bar(_DOING[step.kind], quiet=quiet):
                step.run(memory)
    finally:
        memory.close()


def certify(memory: Memory, found: Extraction, told: Difference, seed: int = 137, *, quiet: bool = True) -> Certificate:
    """Asks a memory the facts of some sources in wordings that were never taught.

    Args:
        memory: holds the facts.
        found: in the sources.
        told: what the memory was just told of them.
        seed: of the intervals.
        quiet: no progress bars.
    """
    changes: dict[str, Change] = {}
    for change, facts in (
        ("added", told.added), ("updated", told.updated), ("moved", told.moved), ("unchanged", told.unchanged)
    ):  # fmt: skip
        changes |= dict.fromkeys((fact.id for fact in facts), change)  # type: ignore[arg-type]  # each is a Change
    stored = {fact.id: fact for fact in memory.facts}
    held = [stored[fact.id] for fact in found.facts]
    wordings = [fact.unseen_questions for fact in held]
    asked = [question for each in wordings for question in each]
    first = [each[0] if each else fact.questions[0] for fact, each in zip(held, wordings, strict=True)]
    model, tokenizer = memory.model, memory.tokenizer
    with progress_bar("Asking wordings never taught", len(asked), quiet=quiet) as advance:
        said = iter(answer_questions(model, tokenizer, asked, progress=advance))
    with progress_bar("Asking the backbone alone", len(first), quiet=quiet) as advance, without_memory(model):
        alone = answer_questions(model, tokenizer, first, progress=advance)
    certified = [
        Certified(
            fact, changes[fact.id], tuple(_asked(question, next(said), fact) for question in own),
            contains_answer(before, fact.answers),
        )
        for fact, own, before in zip(held, wordings, alone, strict=True)
    ]  # fmt: skip
    return Certificate(
        certified, found.passages, found.left_out, tuple(fact.id for fact in told.forgotten), _summary(certified, seed)
    )


def _asked(question: str, answer: str, fact: Fact) -> Asked:
    accepted = fact.answers
    return Asked(
        question, answer, exact_match(answer, accepted), contains_answer(answer, accepted), token_f1(answer, accepted)
    )


def _summary(facts: Sequence[Certified], seed: int) -> dict[str, dict[str, float]]:
    """Recall in wordings never taught, by each measure, and of the bare backbone; per fact, with 95 % intervals."""
    asked = [each for each in facts if each.asked]
    shares: dict[str, list[float]] = {
        "recall": [_mean([one.right for one in each.asked]) for each in asked],
        "recall_containment": [_mean([one.contained for one in each.asked]) for each in asked],
        "recall_token_f1": [_mean([one.f1 for one in each.asked]) for each in asked],
        "backbone_containment": [float(each.known_before) for each in facts],
    }
    return {name: _figures(mean_interval(values, seed)) for name, values in shares.items() if values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figures(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "n": estimate.n, "low": estimate.ci_low, "high": estimate.ci_high}
