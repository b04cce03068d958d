"""Finds the stored answers that a text names, for questions from a fact's other end: "What did Yann Tamb found?".

Names are told as those of subjects are: letters are folded, and a part of a longer name is none. Yes, no and single
characters are never found. An answer that is short, has digits, or has no capital is found where it is written exactly:
"EMI", "10 EUR", "country music".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

from memlayers.data.facts import Fact, composed, folded

FindSubjects: TypeAlias = Callable[[Sequence[Fact], str], Sequence[tuple[int, int, tuple[str, ...], str]]]
"""Finds the subjects of some facts in a text: the mentions."""

_WORD: Final = re.compile(r"[^\W_]+")
_NEVER: Final = frozenset("yes no true false none unknown".split())
_LEAST: Final = 2  # letters and digits
_SHORT: Final = 4  # letters and digits from which an answer may be spelled otherwise
_MOST_WORDS: Final = 12  # of an answer that is looked for
_WORDINGS: Final = 8  # facts of an answer whose wordings tell which words are common


class AnswerMention(NamedTuple):
    """A place in a text that names a stored answer.

    Attributes:
        start: in characters.
        end: in characters, exclusive.
        facts: that have this answer and a subject, in order.
    """

    start: int
    end: int
    facts: tuple[Fact, ...]


@runtime_checkable
class AnswerLinker(Protocol):
    """What a linker may do beside `Linker`: find stored answers. One that does not is asked for subjects alone."""

    def answers_in(self, text: str) -> list[AnswerMention]:
        """The stored answers that a text names (in Unicode form NFC), in their order, none within another."""
        ...


class AnswerIndex:
    """The stored facts by the folded letters of their answers; 100,000 of them take some tenths of a second.

    Args:
        facts: that are stored; those without a subject are left out.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._facts: dict[str, dict[str, list[Fact]]] = {}  # by folded letters, and spelling
        self._longest = 0
        for fact in facts:
            for answer in fact.answers if fact.subject else ():
                letters = folded(answer)
                words = answer.count(" ") + 1
                if len(letters) >= _LEAST and words <= _MOST_WORDS and letters not in _NEVER:
                    self._facts.setdefault(letters, {}).setdefault(answer, []).append(fact)
                    self._longest = max(self._longest, len(_WORD.findall(answer)))

    def mentions(self, text: str, find_subjects: FindSubjects) -> list[AnswerMention]:
        """The stored answers that a text names.

        Args:
            text: in Unicode form NFC.
            find_subjects: in the text; it is handed facts whose subjects are answers that may be named.
        """
        letters = self._letters_in(text)
        if not letters:
            return []
        named = [
            Fact(fact.id, answer, fact.subject, fact.questions)
            for each in letters for answer, own in self._facts[each].items() for fact in own[:_WORDINGS]
        ]  # fmt: skip
        found = []
        for start, end, answers, _ in find_subjects(named, text):
            written = text[start:end]
            facts = {
                fact.id: fact
                for answer in answers if written == composed(answer) or not _is_exact(answer)
                for fact in self._facts[folded(answer)][answer]
            }  # fmt: skip
            if facts:
                found.append(AnswerMention(start, end, tuple(facts.values())))
        return found

    def _letters_in(self, text: str) -> list[str]:
        """The folded letters of stored answers that a text's words spell."""
        words = [folded(word) for word in _WORD.findall(text)]
        runs = (
            "".join(words[first : first + size])
            for first in range(len(words)) for size in range(1, min(self._longest, len(words) - first) + 1)
        )  # fmt: skip
        return [each for each in dict.fromkeys(runs) if each in self._facts]


def _is_exact(answer: str) -> bool:
    """Whether an answer has to be written exactly to be found."""
    return len(folded(answer)) < _SHORT or any(map(str.isdigit, answer)) or not any(map(str.isupper, answer))
