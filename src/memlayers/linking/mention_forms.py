"""The surface forms of the stored subjects, as token sequences, found in the facts' own questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact
from memlayers.linking.boundaries import token_marks
from memlayers.linking.token_spans import _whole, name_span
from memlayers.tuner.subject_index import CAPITAL, DIGIT, GOES_ON, LEADS, PART, leaders, marks_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
FURTHER_REACH = 32  # tokens beyond what a taught phrasing and its answer took: other phrasings are longer
CONTRADICTED = 0.01  # share of facts beside whose names a kind of token may stand and still tell of longer names
RARE = 100  # a word is part of a nameless subject where at most one in so many facts has it


@dataclass(frozen=True, slots=True)
class Subjects:
    """How to know the subjects of some facts by their tokens.

    Attributes:
        runs: the distinct runs of tokens that spell them, at least one, each with the run that stands for its subject.
        reach: tokens from a run's last one to the longest context's end, and `FURTHER_REACH` more.
        marks: what every token of the vocabulary says of a name beside it (tuner/subject_index.py), uint8 [v].
        of_fact: the runs that spell each fact's subject.
    """

    runs: dict[tuple[int, ...], tuple[int, ...]]
    reach: int
    marks: Tensor
    of_fact: list[set[tuple[int, ...]]] = field(default_factory=list)


def subject_runs(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], contexts: Sequence[Sequence[Sequence[int]]]
) -> Subjects:
    """Finds the runs of tokens that spell the facts' subjects.

    The subject of a phrasing is the fact's, where the phrasing names it; otherwise what lies between the first and the
    last of its words that hardly any other fact has; otherwise the whole question. Outer punctuation is left out:
    tokenizers join it with what follows. Each run is taken as the phrasings hold it, and as it would begin a text
    and follow a space.

    Args:
        tokenizer: the backbone's.
        facts: what will be taught.
        contexts: for each fact and each of its taught phrasings the token ids of prompt and answer.
    """
    words, marks = facts_words(facts), token_marks(tokenizer)
    each = [subject_runs_of(tokenizer, *pair, words, len(facts), marks) for pair in zip(facts, contexts, strict=True)]
    withdraw_marks(marks, each)
    spelled = [found.spelled_out(marks) for found in each]
    runs = {run: subject for found in reversed(spelled) for run, subject in found.items()}  # the first fact's counts
    reach = max(found.reach for found in each)
    return Subjects(runs, reach, marks, [set(found) for found in spelled])


def subject_names(facts: Sequence[Fact]) -> list[list[str]]:
    """What names the subject in each of the facts' phrasings; see `subject_runs`."""
    words = facts_words(facts)
    return [[_name(fact, question, words, len(facts)) for question in fact.questions] for fact in facts]


class NameInPrompt(NamedTuple):
    """Where a phrasing's prompt, token ids, holds its subject's name, and what stands beside it.

    Attributes:
        prompt: the token ids.
        start: of the name.
        end: of the name, exclusive.
        follower: the token behind it, or -1.
        leader: the one that would say that it had begun before (`tuner.subjects.leaders`), or -1.
    """

    prompt: list[int]
    start: int
    end: int
    follower: int
    leader: int


class FactRuns(NamedTuple):
    """How one fact's subject is spelled.

    Attributes:
        runs: its runs of tokens, each with the one that stands for the subject.
        odd: the phrasings where a token beside the name says that the name is a longer one.
        reach: as `Subjects.reach`.
    """

    runs: dict[tuple[int, ...], tuple[int, ...]]
    odd: list[NameInPrompt]
    reach: int

    def spelled_out(self, marks: Tensor) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The runs, and with them the names that these phrasings seem to hold by the marks: their own, but longer."""
        runs = dict(self.runs)
        for prompt, start, end, _, _ in self.odd:
            says = marks_of(marks, torch.tensor(prompt))
            while end < len(prompt) and says[end] & GOES_ON:
                end += 1
            while (led := int(leaders(marks, torch.tensor([prompt]))[0, start])) >= 0 and says[led] & LEADS:
                start = min(led, start - 1)
            runs.setdefault(tuple(prompt[start:end]), next(iter(self.runs.values())))
        return runs


def facts_words(facts: Sequence[Fact]) -> Counter[str]:
    """How many facts each word of their questions is in."""
    return Counter(word for fact in facts for word in {w for q in fact.questions for w in _words(q)})


def subject_runs_of(
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[Sequence[int]],
    words: Counter[str],
    facts: int,
    marks: Tensor,
) -> FactRuns:
    """As `subject_runs`, for one fact among others.

    Args:
        tokenizer: the backbone's.
        fact: the fact.
        contexts: for each of its taught phrasings the token ids of prompt and answer.
        words: `facts_words` of all facts.
        facts: how many there are.
        marks: `token_marks`.
    """
    runs: dict[tuple[int, ...], tuple[int, ...]] = {}
    odd = []
    core = _without_outer_punctuation(fact.subject)
    stands = tuple(tokenizer(core, add_special_tokens=False)["input_ids"]) if core else ()
    reach = 1
    for question, ids in zip(fact.questions, contexts, strict=True):
        name = _name(fact, question, words, facts)
        prompt = encode_prompt(tokenizer, question)
        span = name_span(tokenizer, prompt, name, question)
        if span is None:  # a tokenizer that does not write what it read
            span = 0, len(prompt) - 1  # the memory is read from the token behind it on
        follower = prompt[span[1]] if span[1] < len(prompt) else -1
        led = int(leaders(marks, torch.tensor([prompt]))[0, span[0]])
        leader = prompt[led] if led >= 0 else -1
        if int(marks_of(marks, torch.tensor(follower))) & GOES_ON or int(marks_of(marks, torch.tensor(leader))) & LEADS:
            odd.append(NameInPrompt(prompt, *span, follower, leader))
        reach = max(reach, len(ids) - span[1] + 1)
        spelt = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (name, f" {name}")]
        spelt = [run for run in (*spelt, tuple(prompt[slice(*span)])) if run]
        stands = stands or spelt[0]  # one for all spellings: a name that begins a sentence is the same name
        for run in spelt:
            runs.setdefault(run, stands)
    return FactRuns(runs, odd, reach + FURTHER_REACH)


def withdraw_marks(marks: Tensor, found: Sequence[FactRuns]) -> None:
    """Takes back, in place, what the facts' own phrasings contradict.

    What a kind of token says depends on the language (German joins words, others do not space them): where one kind
    stands beside the subjects of more than `CONTRADICTED` of the facts all the same, none of its tokens says so any
    more. Of fewer facts the odd phrasings' names are spelled out (`FactRuns.spelled_out`).
    """
    for says, tokens in (
        (GOES_ON, [[where.follower for where in one.odd] for one in found]),
        (LEADS, [[where.leader for where in one.odd] for one in found]),
    ):
        told = [marks_of(marks, torch.tensor(each, dtype=torch.int64)) for each in tokens]
        for kind in (PART, CAPITAL | DIGIT):
            facts = sum(bool(((each & kind != 0) & (each & says != 0)).any()) for each in told)
            if facts > CONTRADICTED * len(found):
                marks[(marks & kind != 0)] &= ~says & 0xFF


def _name(fact: Fact, question: str, words: Counter[str], facts: int) -> str:
    core = _without_outer_punctuation(fact.subject)
    forms = [core, core[:1].upper() + core[1:]] if core else []  # a subject may begin a sentence
    for pattern in (_whole, re.escape):  # a word of its own; or else within one, as some languages have it
        for form in forms:
            if re.search(pattern(form), question):
                return form
    rare = [m for m in re.finditer(r"\w+", question) if words[m.group()] <= max(1, facts // RARE)]
    return question[rare[0].start() : rare[-1].end()] if rare else _without_outer_punctuation(question) or question


def _without_outer_punctuation(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
