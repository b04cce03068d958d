"""The certificate as a page: what was measured, every passage with its facts, what was left out. One HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Final

from memlayers.certificate.certificate import Certificate, Certified
from memlayers.data.facts import Source
from memlayers.utils.html_pages import html_page

_MEASURES: Final = {
    "recall": "recall, wordings never taught",
    "recall_containment": "the same by containment",
    "recall_token_f1": "the same by token F1",
    "backbone_containment": "known to the backbone alone",
}
_CHANGES: Final = {"added": "added", "updated": "new answer", "moved": "found elsewhere now", "unchanged": "unchanged"}


def certificate_page(certificate: Certificate, name: str) -> str:
    """The page, which loads nothing.

    Args:
        certificate: of a memory.
        name: of the memory.
    """
    return html_page(f"What {name} holds of its sources", _parts(certificate))


def _parts(certificate: Certificate) -> Iterator[str]:
    facts = certificate.facts
    answered = sum(each.answered for each in facts)
    yield (
        f'<p><b class="{"right" if answered == len(facts) else "look"}">{answered:,} of {len(facts):,} facts</b> are '
        "answered rightly in every wording that was never taught. "
        f"{len(certificate.passages):,} passages were read, {len(certificate.left_out):,} things left out.</p>"
    )
    changes = ", ".join(f"{number:,} {name}" for name, number in certificate.changes.items() if number)
    when = certificate.environment.get("date", "")
    yield f'<p class="soft">Facts: {escape(changes)}. {escape(str(when))}</p>'
    yield '<table><tr><th>measured, per fact</th><th>share</th><th class="soft">95 % interval</th><th>facts</th></tr>'
    for metric, title in _MEASURES.items():
        if found := certificate.summary.get(metric):
            yield (
                f'<tr><td>{title}</td><td class="number">{found["value"]:.1%}</td>'
                f'<td class="number soft">{found["low"]:.1%} to {found["high"]:.1%}</td>'
                f'<td class="number">{found["n"]:,}</td></tr>'
            )
    yield "</table>"
    wrong = [each for each in facts if not each.answered]
    if wrong:
        yield f'<h2>Not answered <span class="soft">{len(wrong):,}</span></h2>'
        for each in wrong:
            yield f"<article>{_fact(each, everything=True)}</article>"
    if certificate.reasons:
        yield "<h2>Left out</h2><table><tr><th>why</th><th>number</th></tr>"
        for why, number in certificate.reasons.items():
            yield f'<tr><td>{escape(why)}</td><td class="number">{number:,}</td></tr>'
        yield "</table>"
    for document, passages in groupby(certificate.of_passages(), key=lambda each: each[0].document):
        yield f"<h2>{escape(document)}</h2>"
        for passage, own, reasons in passages:
            yield _passage(passage, own, reasons)


def _passage(passage: Source, facts: list[Certified], why: list[str]) -> str:
    place = passage.place.removeprefix(passage.document).removeprefix(", ")
    said = "".join(_fact(each, everything=False) for each in facts)
    said += "".join(f'<p class="soft">left out: {escape(each)}</p>' for each in why)
    return (
        f'<article><blockquote dir="auto">{_marked(passage, facts)}<br><span class="soft">{escape(place)}</span>'
        f"</blockquote>{said}</article>"
    )


def _marked(passage: Source, facts: list[Certified]) -> str:
    """A passage's text, in which the facts' answers are marked."""
    text, at = passage.evidence, 0
    spans = sorted((text.find(each.fact.answer), len(each.fact.answer)) for each in facts)
    parts = []
    for start, length in spans:
        if start >= at:
            parts += [escape(text[at:start]), f"<mark><b>{escape(text[start : start + length])}</b></mark>"]
            at = start + length
    return "".join([*parts, escape(text[at:])])


def _fact(each: Certified, *, everything: bool) -> str:
    fact = each.fact
    what = f"{fact.subject}, {fact.relation}" if fact.subject and fact.relation else fact.subject or fact.questions[0]
    right = sum(asked.right for asked in each.asked)
    state = f"answered in {right} of {len(each.asked)} wordings never taught" if each.asked else "has no other wording"
    lines = [
        f'<p>{escape(what)}: <b>{escape(fact.answer)}</b> <span class="{"right" if each.answered else "refused"}">'
        f'{state}</span> <span class="soft">{_CHANGES[each.change]}</span></p>'
    ]
    if everything or not each.answered:
        lines += [
            f'<p class="soft">{escape(asked.question)} <b>{escape(asked.answer)}</b></p>'
            for asked in each.asked
            if not asked.right
        ]
    if everything:
        lines += [f'<p class="soft">{escape(source.place)}</p>' for source in fact.sources]
    return "".join(lines)
