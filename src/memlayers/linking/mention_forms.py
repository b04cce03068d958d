"""Finds the surface forms of the facts' subjects, as token ids: in the facts' own questions, and their aliases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memlayers.config.sections import MentionConfig
from memlayers.data.encoding import encode_prompt
from memlayers.data.facts import Fact, aliases_by_subject
from memlayers.linking.boundaries import vocabulary_flags
from memlayers.linking.folding import vocabulary_letters
from memlayers.linking.token_spans import mention_span, whole_word
from memlayers.tuner.boundary_flags import Boundary, flags_of, hyphenated, preceding
from memlayers.tuner.letters import Letters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class SubjectForms:
    """How the subjects of some facts are spelled, and how far after a mention their memory may be read.

    Attributes:
        forms: the distinct surface forms, token ids, at least one; each with the form whose fingerprint is the
            entity id of its subject (see `SubjectIndex.fill`).
        scope: the scope after a mention: tokens from its last one to the longest context's end, and
            `MentionConfig.further_scope` more.
        flags: the `Boundary` flags of the vocabulary, uint8 [v + 1].
        letters: the vocabulary's folded letters; none where names are compared token by token.
        of_fact: the surface forms of each fact's subject.
    """

    forms: dict[tuple[int, ...], tuple[int, ...]]
    scope: int
    flags: Tensor
    letters: Letters
    of_fact: list[set[tuple[int, ...]]] = field(default_factory=list)


def subject_forms(
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    contexts: Sequence[Sequence[Sequence[int]]],
    config: MentionConfig | None = None,
) -> SubjectForms:
    """Finds the surface forms of the facts' subjects.

    The subject of a phrasing is the fact's, or one of its aliases, where the phrasing mentions it; otherwise what lies
    between the first and the last of its words that hardly any other fact has; otherwise the whole question. Outer
    punctuation is left out: tokenizers join it with what follows. Each form is taken as the phrasings have it, and as
    it would begin a text and follow a space; so is each alias, whichever fact of the subject gives it.

    Args:
        tokenizer: the backbone's.
        facts: what will be taught.
        contexts: for each fact and each of its taught phrasings the token ids of prompt and answer.
        config: None for the defaults.
    """
    config = config or MentionConfig()
    words, flags, aliases = word_fact_counts(facts), vocabulary_flags(tokenizer), aliases_by_subject(facts)
    each = [
        fact_forms(tokenizer, fact, ids, words, len(facts), flags, config, aliases=aliases.get(fact.subject, ()))
        for fact, ids in zip(facts, contexts, strict=True)
    ]
    withdraw_flags(flags, each, config)
    spelled = [found.with_longer_names(flags) for found in each]
    forms = {form: subject for found in reversed(spelled) for form, subject in found.items()}  # the first fact's counts
    scope = max(found.scope for found in each)
    letters = vocabulary_letters(tokenizer) if config.folded else Letters.none(len(tokenizer))
    return SubjectForms(forms, scope, flags, letters, [set(found) for found in spelled])


def subject_mentions(facts: Sequence[Fact], config: MentionConfig | None = None) -> list[list[str]]:
    """The text that mentions the subject, in each of the facts' phrasings; see `subject_forms`."""
    rare = (config or MentionConfig()).rare
    words, aliases = word_fact_counts(facts), aliases_by_subject(facts)
    names = [(fact.subject, *aliases.get(fact.subject, ())) for fact in facts]
    return [
        [_name(own, question, words, len(facts), rare) for question in fact.questions]
        for fact, own in zip(facts, names, strict=True)
    ]


class MentionInPrompt(NamedTuple):
    """A mention in a phrasing's prompt, and the tokens beside it.

    Attributes:
        prompt: token ids.
        start: of the mention.
        end: of the mention, exclusive.
        following: the token that may say that it is the beginning of a longer name: the one right after it, or one
            that a hyphen joins with it; or -1.
        preceding: the token that may say that it is a suffix of a longer name (`boundary_flags.preceding`), or -1.
        hyphenated: whether a hyphen is right beside it.
    """

    prompt: list[int]
    start: int
    end: int
    following: int
    preceding: int
    hyphenated: bool


class FactForms(NamedTuple):
    """The surface forms of one fact's subject.

    Attributes:
        forms: as `SubjectForms.forms`.
        exceptions: its own phrasings in which a token beside the mention says that the mention is part of a longer
            name.
        scope: as `SubjectForms.scope`.
    """

    forms: dict[tuple[int, ...], tuple[int, ...]]
    exceptions: list[MentionInPrompt]
    scope: int

    def with_longer_names(self, flags: Tensor) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The forms, and the longer names that its exceptions seem to mention by these flags, as forms of the same."""
        forms = dict(self.forms)
        for prompt, start, end, *_ in self.exceptions:
            says = flags_of(flags, torch.tensor(prompt))
            before = preceding(flags, torch.tensor([prompt]))[0]
            while (asked := _following(prompt, end, flags)) >= 0 and says[asked] & Boundary.CONTINUES:
                end = asked + 1
            while (asked := int(before[start])) >= 0 and says[asked] & Boundary.PRECEDES:
                start = min(asked, start - 1)
            forms.setdefault(tuple(prompt[start:end]), next(iter(self.forms.values())))
        return forms


def word_fact_counts(facts: Sequence[Fact]) -> Counter[str]:
    """How many facts each word of their questions is in."""
    return Counter(word for fact in facts for word in {w for q in fact.questions for w in _words(q)})


def fact_forms(
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    contexts: Sequence[Sequence[int]],
    words: Counter[str],
    facts: int,
    flags: Tensor,
    config: MentionConfig | None = None,
    *,
    aliases: Sequence[str] = (),
) -> FactForms:
    """As `subject_forms`, for one fact among others.

    Args:
        tokenizer: the backbone's.
        fact: the fact.
        contexts: for each of its taught phrasings the token ids of prompt and answer.
        words: `word_fact_counts` of all facts.
        facts: how many there are.
        flags: `vocabulary_flags`, without those that were withdrawn.
        config: None for the defaults.
        aliases: of its subject, `aliases_by_subject`.
    """
    config = config or MentionConfig()
    forms: dict[tuple[int, ...], tuple[int, ...]] = {}
    exceptions = []
    core = _without_outer_punctuation(fact.subject)
    entity = tuple(tokenizer(core, add_special_tokens=False)["input_ids"]) if core else ()
    scope = 1
    for question, ids in zip(fact.questions, contexts, strict=True):
        name = _name((fact.subject, *aliases), question, words, facts, config.rare)
        prompt = encode_prompt(tokenizer, question)
        span = mention_span(tokenizer, prompt, name, question)
        if span is None:  # a tokenizer that does not write what it read
            span = 0, len(prompt) - 1  # the memory is read from the token after it on
        mention = _mention(prompt, *span, flags)
        if flags_of(flags, torch.tensor(mention.following)) & Boundary.CONTINUES or (
            flags_of(flags, torch.tensor(mention.preceding)) & Boundary.PRECEDES
        ):
            exceptions.append(mention)
        scope = max(scope, len(ids) - span[1] + 1)
        spelled = [form for form in (*_spelled(tokenizer, name), tuple(prompt[slice(*span)])) if form]
        entity = entity or spelled[0]  # one for all forms: a name that begins a sentence is the same name
        for form in spelled:
            forms.setdefault(form, entity)
    for form in alias_forms(tokenizer, aliases):
        forms.setdefault(form, entity)
    return FactForms(forms, exceptions, scope + config.further_scope)


def alias_forms(tokenizer: PreTrainedTokenizerBase, aliases: Iterable[str]) -> list[tuple[int, ...]]:
    """The surface forms, token ids, of aliases: of each as it would begin a text and follow a space."""
    names = map(_without_outer_punctuation, aliases)
    return [form for name in names for form in _spelled(tokenizer, name) if form]


def withdraw_flags(flags: Tensor, found: Sequence[FactForms], config: MentionConfig) -> None:
    """Withdraws, in place, the flags that the facts' own phrasings contradict.

    What a kind of token says depends on the language (German joins words, others do not space them). Where tokens of
    one kind stand beside the subjects of more than `config.contradicted` of the facts all the same, all tokens of the
    kind lose the flag. Of fewer facts the longer names are added as surface forms (`FactForms.with_longer_names`), and
    always where a hyphen joins them, which says nothing of the language.
    """
    contrary = [[mention for mention in one.exceptions if not mention.hyphenated] for one in found]
    for flag, tokens in (
        (Boundary.CONTINUES, [[mention.following for mention in each] for each in contrary]),
        (Boundary.PRECEDES, [[mention.preceding for mention in each] for each in contrary]),
    ):
        beside = [flags_of(flags, torch.tensor(each, dtype=torch.int64)) for each in tokens]
        for is_of_kind in (_is_part, _is_capital):
            facts = sum(bool((is_of_kind(each) & (each & flag != 0)).any()) for each in beside)
            if facts > config.contradicted * len(found):
                flags[is_of_kind(flags)] &= int(~flag) & 0xFF


def _is_part(flags: Tensor) -> Tensor:
    return flags & Boundary.WORD_PART != 0


def _is_capital(flags: Tensor) -> Tensor:
    return (flags & (Boundary.CAPITAL | Boundary.DIGIT) != 0) & ~_is_part(flags)


def _mention(prompt: list[int], start: int, end: int, flags: Tensor) -> MentionInPrompt:
    before = int(preceding(flags, torch.tensor([prompt]))[0, start])
    after = _following(prompt, end, flags)
    beside = torch.tensor([*prompt[max(0, start - 1) : start + 1], *prompt[end : end + 1]])
    return MentionInPrompt(
        prompt, start, end,
        following=prompt[after] if after >= 0 else -1,
        preceding=prompt[before] if before >= 0 else -1,
        hyphenated=bool((flags_of(flags, beside) & Boundary.HYPHEN).any()),
    )  # fmt: skip


def _following(prompt: list[int], end: int, flags: Tensor) -> int:
    """The position of the token that may say that a mention that ends here continues; -1 where there is none."""
    if end == len(prompt) or not flags_of(flags, torch.tensor(prompt[end])) & Boundary.HYPHEN:
        return end if end < len(prompt) else -1
    glued, continued = (each[0] for each in hyphenated(flags, torch.tensor([prompt])))
    while end < len(prompt) and glued[end]:
        if continued[end] >= 0:
            return end
        end += 1
    return -1


def _spelled(tokenizer: PreTrainedTokenizerBase, name: str) -> list[tuple[int, ...]]:
    """A name's token ids, as it would begin a text and follow a space."""
    # A tokenizer may cut a letter that is not ASCII in parts, which are compared as they are: in each case.
    cases = [name] if name.isascii() else list(dict.fromkeys((name, name.upper(), name.lower())))
    texts = [text for each in cases for text in (each, f" {each}")]
    return [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _name(names: Sequence[str], question: str, words: Counter[str], facts: int, rare_in: int) -> str:
    """The text that mentions the subject of these names in one of its fact's questions."""
    cores = [core for name in names if (core := _without_outer_punctuation(name))]
    spellings = [text for core in cores for text in (core, core[:1].upper() + core[1:])]  # it may begin a sentence
    for pattern in (whole_word, re.escape):  # a word of its own; or else within one, as some languages have it
        for spelling in spellings:
            if re.search(pattern(spelling), question):
                return spelling
    rare = [m for m in re.finditer(r"\w+", question) if words[m.group()] <= max(1, facts // rare_in)]
    return question[rare[0].start() : rare[-1].end()] if rare else _without_outer_punctuation(question) or question


def _without_outer_punctuation(text: str) -> str:
    return re.sub(r"^\W+|\W+$", "", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
