"""The page of a check: findings, and every fact's evidence, the answer marked in it. One HTML file. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from memlayers.data.facts import Fact, Source
from memlayers.sources.findings import KINDS, CheckReport, Finding
from memlayers.sources.originals import Originals
from memlayers.sources.word_spans import stands_alone
from memlayers.utils.html_pages import html_page

_AROUND: Final = 160  # characters of the passage, before the evidence and behind it
_MOST_FINDINGS: Final = 200  # of a kind
_MOST_FACTS: Final = 1000  # with their evidence


def page_text(name: str, facts: Sequence[Fact], report: CheckReport) -> str:
    """The page as HTML that loads nothing.

    Args:
        name: of the file that was checked.
        facts: that were checked.
        report: of the check.
    """
    return html_page(f"Check of {name}", _parts(facts, report))


def _parts(facts: Sequence[Fact], report: CheckReport) -> Iterator[str]:
    refused = sum(finding.refused for finding in report.findings)
    yield (
        f"<p>{len(facts):,} facts, {sum(len(fact.questions) for fact in facts):,} wordings: "
        f'<span class="refused">{refused:,} refused</span>, '
        f'<span class="look">{len(report.findings) - refused:,} to look at</span>.</p>'
    )
    if report.findings:
        yield "<table><tr><th>finding</th><th></th><th>number</th><th>--fix</th></tr>"
        for kind, count in report.counts.items():
            yield (
                f'<tr><td><a href="#{kind}">{_text(KINDS[kind].title)}</a></td><td>{_severity(kind)}</td>'
                f'<td class="number">{count:,}</td><td>{_text(KINDS[kind].mended)}</td></tr>'
            )
        yield "</table>"
    originals = report.originals
    for kind, count in report.counts.items():
        yield f'<h2 id="{kind}">{_text(KINDS[kind].title.capitalize())} <span class="soft">{count:,}</span></h2>'
        for finding in report.of(kind)[:_MOST_FINDINGS]:
            yield from _finding(finding, facts, originals)
        yield _more(count, _MOST_FINDINGS)
    sourced = [fact for fact in facts if fact.sources]
    if sourced:
        yield f'<h2 id="evidence">Evidence <span class="soft">{len(sourced):,} facts have some</span></h2>'
        yield '<p class="soft">The <mark>evidence</mark> is marked, and in it the <mark><b>answer</b></mark>.</p>'
        for fact in sourced[:_MOST_FACTS]:
            yield from _fact(fact, originals)
        yield _more(len(sourced), _MOST_FACTS)


def _finding(finding: Finding, facts: Sequence[Fact], originals: Originals) -> Iterator[str]:
    lines = finding.lines or ("",) * len(finding.ids)
    where = [f"{_text(fact_id)}{f' (line {line})' if line else ''}" for fact_id, line in zip(finding.ids, lines)]  # noqa: B905  # of equal length
    yield f'<article><p>{_text(finding.said)}</p><p class="soft">{", ".join(where[:8])}{_beyond(len(where), 8)}</p>'
    for place in finding.places[:2]:
        fact = facts[place]
        yield f'<p class="soft">{_text(fact.questions[0])} <b>{_text(fact.answer)}</b></p>'
        for number in finding.sources or range(len(fact.sources)):
            yield _passage(fact.sources[number], fact, originals)
    yield "</article>"


def _fact(fact: Fact, originals: Originals) -> Iterator[str]:
    what = f"{fact.subject}, {fact.relation}" if fact.subject and fact.relation else fact.subject or fact.questions[0]
    yield f'<article><p>{_text(what)}: <b>{_text(fact.answer)}</b> <span class="soft">{_text(fact.id)}</span></p>'
    for source in fact.sources:
        yield _passage(source, fact, originals)
    yield "</article>"


def _passage(source: Source, fact: Fact, originals: Originals) -> str:
    """The evidence marked, the answer in it, and what stands around it where that is known."""
    found = originals.located(source)
    there, before, behind = found or source, "", ""
    if there.start is not None and there.end is not None and (document := originals.document(source.document)):
        before = document.text[max(0, there.start - _AROUND) : there.start] if found else ""
        behind = document.text[there.end : there.end + _AROUND] if found else ""
    elif source.row is not None:
        before = f"{fact.subject}, {source.column}: "
    place = there.place if found else f"not found in {source.place}"
    return (
        f'<blockquote dir="auto">{_text(before)}<mark>{_with_answer(there.evidence, fact.answers)}</mark>'
        f'{_text(behind)}<br><span class="soft">{_text(place)}</span></blockquote>'
    )


def _with_answer(evidence: str, answers: Sequence[str]) -> str:
    for answer in answers:
        for pattern in (re.escape(answer), r"\W+".join(map(re.escape, re.findall(r"\w+", answer)))):
            spans = (found.span() for found in re.finditer(pattern, evidence, re.IGNORECASE) if pattern)
            for start, end in spans:
                if stands_alone(evidence, start, end):
                    return f"{_text(evidence[:start])}<b>{_text(evidence[start:end])}</b>{_text(evidence[end:])}"
    return _text(evidence)


def _severity(kind: str) -> str:
    return f'<span class="{"refused" if KINDS[kind].refused else "look"}">{_said(kind)}</span>'


def _said(kind: str) -> str:
    return "refused" if KINDS[kind].refused else "to look at"


def _more(count: int, shown: int) -> str:
    return f'<p class="soft">And {count - shown:,} more: <code>--json</code> names all.</p>' if count > shown else ""


def _beyond(count: int, shown: int) -> str:
    return f" and {count - shown:,} more" if count > shown else ""


def _text(text: str) -> str:
    return escape(text)
