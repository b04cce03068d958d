"""What is checked of each fact by itself: its wordings, its answer, its subject. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from memlayers.data.answers import normalise_answer
from memlayers.data.facts import Fact, aliases_by_subject, folded, question_key
from memlayers.linking.config import LinkConfig
from memlayers.linking.derived_forms import derived_forms, is_person
from memlayers.linking.linker import FUNCTION_WORDS, common_words, ordinary_words
from memlayers.sources.findings import Finding, Noting, listed, shortened
from memlayers.sources.word_spans import holds, names_subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS: Final = 200
"""Of an answer."""
MOST_ANSWER_WORDS: Final = 150
"""Of an answer, where there is no tokenizer to count its tokens."""
LEAST_WORDINGS: Final = 3
"""Taught, of a fact."""

_POCKET: Final = Path(__file__).parents[1] / "pocket"
_WORD: Final = re.compile(r"[^\W_]+")
_ARTICLE: Final = re.compile(r"\A\s*(?:an?|the)\s+(?=\S)", re.IGNORECASE)
_CUT: Final = "\n?\n"  # no word goes across it
_FACTS_FOR_WORDS: Final = 2000
_BYTES_A_WORD: Final = 8  # where a text has no spaces


def wording_findings(facts: Sequence[Fact], note: Noting) -> Iterator[Finding]:
    """Wordings that are empty, given twice, give their answer away, or do not name their subject; and too few."""
    names = _Names(facts)
    for i, fact in enumerate(facts):
        wordings = (*fact.questions, *fact.unseen_questions)
        keys = [question_key(wording) for wording in wordings]
        if empty := [wording for wording in wordings if not folded(wording)]:
            yield note(
                "empty_wording",
                [i],
                f"{listed(empty)} holds no letter and no digit: word the question",
                texts=(*empty,),
            )
        if len(set(keys)) < len(keys):
            twice = [wording for n, wording in enumerate(wordings) if keys[n] in keys[:n]]
            yield note(
                "repeated_wording", [i],
                f"{listed(twice)} is there twice, but for case, spaces and the final mark: leave one", texts=(*twice,),
            )  # fmt: skip
        of_fact = names.of(fact)
        if given := given_away(fact, of_fact):
            yield note(
                "gives_answer_away", [i],
                f"{listed(given)} holds its own answer, {shortened(fact.answer)!r}: word it without", texts=(*given,),
            )  # fmt: skip
        if len(fact.questions) < LEAST_WORDINGS:
            yield note(
                "few_wordings", [i],
                f"{len(fact.questions)} to be taught: give {LEAST_WORDINGS} and more, ten are good; one that is never "
                "taught is then answered too",
            )  # fmt: skip
        if not fact.subject:
            yield note("no_subject", [i], "no subject: say whom or what it is about, so that `ask` links its name")
        elif unnamed := [wording for wording in wordings if not names.named_in(wording, fact)]:
            which = "no wording names" if len(unnamed) == len(wordings) else f"{listed(unnamed)} does not name"
            yield note(
                "subject_not_named", [i],
                f"{which} {shortened(fact.subject)!r}: name it, or give the name that stands there as a "
                "subject alias; otherwise `ask` does not link it", texts=(*unnamed,),
            )  # fmt: skip


def subject_findings(
    facts: Sequence[Fact], note: Noting, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Finding]:
    """Subjects whose name is an ordinary word, or too short to be linked."""
    ordinary = shipped_words().__contains__ if tokenizer is None else ordinary_words(tokenizer)
    common = common_words(facts[:_FACTS_FOR_WORDS])
    first: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        if fact.subject:
            first.setdefault(fact.subject, []).append(i)
    for subject, places in first.items():
        words = [folded(word) for word in _WORD.findall(subject)]
        name = shortened(subject)
        if len(folded(subject)) < 2:
            yield note(
                "ordinary_subject", places,
                f"{name!r} has fewer than two letters or digits, and is linked nowhere: give a longer name, or the "
                "answer is found in the taught wordings alone",
            )  # fmt: skip
        elif all(word in common for word in words) or (len(words) == 1 and ordinary(words[0])):
            yield note(
                "ordinary_subject", places,
                f"{name!r} is written like an ordinary word, and is linked only as it is spelled here and where its "
                "capital tells: give a longer name, or a subject alias",
            )  # fmt: skip


def answer_findings(
    facts: Sequence[Fact], note: Noting, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Finding]:
    """Answers that are too long to be taught."""
    most, unit = (MOST_ANSWER_WORDS, "words") if tokenizer is None else (MOST_TOKENS, "tokens")
    for i, fact in enumerate(facts):
        if len(fact.answer.encode()) <= most:  # a token has a byte at least, and so has a word
            continue
        count = _word_count(fact.answer)
        if tokenizer is not None:
            count = len(tokenizer(fact.answer, add_special_tokens=False)["input_ids"])
        if count > most:
            yield note(
                "answer_too_long", [i],
                f"{shortened(fact.answer)!r} has {count:,} {unit}, at most {most} are taught: shorten it, or make "
                "several facts of it",
            )  # fmt: skip


def given_away(fact: Fact, names: Sequence[str]) -> list[str]:
    """The wordings of a fact that hold their own answer, word for word, and not only within the subject's name.

    An answer that is offered beside another one, as in "red or blue?", is not given away, nor is one that is a function
    word: every question has some. Of a fact without a subject it cannot be told.

    Args:
        fact: the fact.
        names: its subject's.
    """
    letters = folded(_ARTICLE.sub("", fact.answer, count=1))
    if letters in FUNCTION_WORDS or not names:
        return []
    holding = sorted((name for name in names if holds(name, fact.answer)), key=len, reverse=True)
    wordings = (*fact.questions, *fact.unseen_questions)
    return [each for each in wordings if letters in folded(each) and _gives_away(each, fact.answer, holding)]


def _gives_away(wording: str, answer: str, names: Sequence[str]) -> bool:
    """Whether a wording holds an answer besides in these names, which hold it."""
    rest = wording
    for name in names:
        rest = re.sub(re.escape(name), _CUT, rest, flags=re.IGNORECASE)
    if names and rest == wording:
        return False  # the name is there in another spelling
    said = re.escape(normalise_answer(answer))
    rest = re.sub(rf"\bor\W+(?:(?:an?|the)\W+)?{said}|{said}\W+or\b", _CUT, normalise_answer(rest))
    return holds(rest, answer)


class _Names:
    """The names of the facts' subjects, and the forms derived from them."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._aliases = aliases_by_subject(facts)

    def of(self, fact: Fact) -> tuple[str, ...]:
        """Subject and aliases; none where there is no subject."""
        return (fact.subject, *self._aliases.get(fact.subject, ())) if fact.subject else ()

    def named_in(self, wording: str, fact: Fact) -> bool:
        """Whether a wording names the fact's subject, by name, alias or derived form."""
        names = self.of(fact)
        if names_subject(wording, names):
            return True
        person = is_person([fact])
        return names_subject(
            wording, [form for name in names for _, form in derived_forms(name, LinkConfig(), person=person)]
        )


def shipped_words() -> frozenset[str]:
    """Ordinary words, in lower case: those of the text that ships with the package."""
    text = "".join((_POCKET / name).read_text(encoding="utf-8") for name in ("general.jsonl", "heldout.txt"))
    return frozenset(re.findall(r"(?<![\w'’\\])[a-z]{2,}(?!\w)", text))


def _word_count(text: str) -> int:
    """How many words a text has; where it has no spaces, about as many as others of its length."""
    words, size = len(text.split()), len(text.encode())
    return words if size < 3 * _BYTES_A_WORD * words else size // _BYTES_A_WORD
