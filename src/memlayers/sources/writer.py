"""Facts that a language model writes from documents, each with its evidence; nothing that the text does not say passes.

Chunks -> what they say, with evidence -> wordings, also of what is asked the other way round, and of what joins two
documents -> checks.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from memlayers.data.facts import MOST_CHARACTERS, Source, folded
from memlayers.sources.chunks import Chunk, chunks_of
from memlayers.sources.claims import Claim, Extraction, LeftOut
from memlayers.sources.documents import Document
from memlayers.sources.outline import Passage, outline
from memlayers.sources.quoting import find_quoted, says
from memlayers.sources.structures import MOST_WORDS
from memlayers.sources.writer_answers import Answers, Reading, Request
from memlayers.sources.writer_prompts import FACTS_SCHEMA, facts_messages, items_of
from memlayers.sources.writer_wordings import with_wordings
from memlayers.utils.errors import InputError, WorkError
from memlayers.utils.progress import progress_bar

if TYPE_CHECKING:
    from memlayers.sources.wordings import Wordings

NONSENSE: Final = "the writer's answer cannot be read"
SAYS_NOTHING: Final = "the writer finds no fact in it"
NOT_QUOTED: Final = "evidence not in the document"

_WORDS_OF_A_SENTENCE: Final = 6  # at least; what has fewer, as an item of a list, may be all answer
_MOST_SHOWN: Final = 300  # characters of a wrong fact, to the writer


def from_writer(
    documents: Sequence[Document],
    answers: Answers,
    wordings: Wordings | None = None,
    *,
    subject: str = "",
    most_words: int = MOST_WORDS,
    quiet: bool = False,
) -> Extraction:
    """Has a writer make facts of documents.

    Args:
        documents: any number.
        answers: the writer, with the folder in which its answers are kept; its `usage` counts what was asked.
        wordings: of a fact for which the writer words too few questions; the shipped ones if not given.
        subject: whom the documents are about, where they do not say it.
        most_words: of an answer; what is longer is left out.
        quiet: no progress bars.

    Returns:
        The facts, each with at least 10 wordings to teach and 3 that are not taught; every passage, and of each that
        became no fact why. Facts that are asked the other way round have "(reversed)" behind their relation, those that
        join two documents "(joined)". A fact's evidence stands in its document word for word.

    Raises:
        InputError: the writer refuses the requests.
        WorkError: it is not there, or not any more, or none of its answers can be read. What it answered is kept; the
            same call goes on from there.
    """
    from memlayers.sources.wordings import worded

    requests = read_requests(documents, subject, most_words)
    chunks = [chunk for chunk, _ in requests]
    with progress_bar("Reading", len(requests), quiet=quiet) as advance:
        read = answers.ask_all([request for _, request in requests], "chunks", advance)
    if chunks and not any(each.readable for each in read):
        raise WorkError(
            f"the writer {answers.writer.model!r} answered nonsense, no JSON with facts, to "
            f"{'the only chunk' if len(chunks) == 1 else f'all {len(chunks)} chunks'}; name another model"
        )
    found = Extraction()
    for chunk, each in zip(chunks, read, strict=True):
        found.left_out += each.left_out if each.readable else [LeftOut(chunk.source, NONSENSE)]
    merged = worded((claim for each in read for claim in each.good), wordings)
    found.facts = with_wordings(merged.facts, chunks, answers, quiet)
    found.left_out += merged.left_out
    found.passages = [
        document.source(each.start, each.end) for document in documents for each in outline(document.text)
    ]
    told = {(claim.source.document, claim.source.start) for each in read for claim in each.good}
    unread = [chunk for chunk, each in zip(chunks, read, strict=True) if not each.readable]
    found.left_out += _without_fact(found.passages, told, unread)
    return found


def read_requests(
    documents: Sequence[Document], subject: str = "", most_words: int = MOST_WORDS
) -> list[tuple[Chunk, Request[Claim]]]:
    """What asks for the facts of documents: their chunks, and a request for each. Arguments as of `from_writer`.

    Raises:
        InputError: an answer may have no word.
    """
    if most_words < 1:
        raise InputError(f"{most_words} words of an answer at most; give at least 1")
    made = []
    for document in documents:
        passages = outline(document.text)
        for chunk in chunks_of(document):
            if subject:
                chunk = replace(chunk, headings=(subject, *chunk.headings))
            made.append((chunk, _facts_request(chunk, passages, most_words)))
    return made


# What a chunk says


def _facts_request(chunk: Chunk, passages: Sequence[Passage], most_words: int) -> Request[Claim]:
    def read(text: str) -> Reading[Claim] | None:
        items = items_of(text, "subject", "relation", "answer", "evidence")
        if items is None:
            return None
        good: dict[Any, Claim] = {}
        faults, left_out = [], []
        for item in items:
            claim = _claim_of(chunk, passages, item, most_words)
            if isinstance(claim, Claim):
                good.setdefault((folded(claim.subject), folded(claim.relation), folded(claim.value)), claim)
            else:
                faults.append(f"{claim}: {json.dumps(item, ensure_ascii=False)[:_MOST_SHOWN]}")
                left_out.append(LeftOut(chunk.source, claim))
        return Reading(good, faults, left_out)

    return Request(facts_messages(chunk), FACTS_SCHEMA, read)


def _claim_of(chunk: Chunk, passages: Sequence[Passage], item: Mapping[str, Any], most_words: int) -> Claim | str:
    """What an item says, as the document spells it; or why it is left out."""
    document = chunk.document
    if not all(isinstance(value, str) and value.strip() for value in item.values()):
        return "a field that is empty, or no text"
    if max(len(item["subject"]), len(item["relation"])) > MOST_CHARACTERS:
        return "a subject or relation too long"
    quoted = find_quoted(document.text, item["evidence"], chunk.start, chunk.end)
    if quoted is None:
        return NOT_QUOTED
    answer = find_quoted(document.text, item["answer"], *quoted)
    answer = answer or find_quoted(document.text, item["answer"], *quoted, any_case=True)
    if answer is None:
        return "answer not in its evidence"
    if answer == quoted and len(item["evidence"].split()) >= _WORDS_OF_A_SENTENCE:
        return "answer is the whole sentence"
    around = passages[max(0, bisect_right(passages, answer[0], key=lambda each: each.start) - 1)] if passages else None
    if around is None or not around.start <= answer[0] < answer[1] <= around.end:
        return "answer not within one passage"
    value = " ".join(document.text[slice(*answer)].split())
    subject = _spelled(chunk, item["subject"])
    if subject is None:
        return "subject not in the document"
    if says(subject, value):
        return "answer within its subject"
    if len(value.split()) > most_words:
        return "too long for an answer"
    relation = " ".join(item["relation"].split()).rstrip("?:.")
    return Claim(subject, relation, value, document.source(max(quoted[0], around.start), min(quoted[1], around.end)))


def _spelled(chunk: Chunk, subject: str) -> str | None:
    """A subject as the document spells it: the chunk before its headings, these before the rest."""
    text = chunk.document.text
    for any_case in (False, True):
        for where in (text[chunk.start : chunk.end], *chunk.headings, text):
            if found := find_quoted(where, subject, any_case=any_case):
                return " ".join(where[slice(*found)].split())
    return None


def _without_fact(
    passages: Iterable[Source], told: Set[tuple[str, int | None]], unread: Iterable[Chunk]
) -> Iterator[LeftOut]:
    """The passages in which no evidence begins, but for those of chunks whose answer could not be read."""
    missing = {(chunk.document.name, place) for chunk in unread for place in range(chunk.start, chunk.end)}
    for each in passages:
        if (each.document, each.start) not in missing and not any(
            (each.document, place) in told for place in range(each.start or 0, each.end or 0)
        ):
            yield LeftOut(each, SAYS_NOTHING)
