"""Keeping the index of subjects, and the check of what was taught of them, in step with the facts that are stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memlayers.data.encoding import Encoded
from memlayers.data.facts import Fact, aliases_by_subject, folded
from memlayers.editing.phrasings import FoldedPhrasings
from memlayers.gating.relations import relation_keys
from memlayers.linking.mention_forms import alias_forms, fact_forms
from memlayers.tuner.handle import MemoryHandle
from memlayers.tuner.relation_check import RelationCheck
from memlayers.tuner.subject_index import SubjectIndex

if TYPE_CHECKING:
    from collections import Counter

    from transformers import PreTrainedTokenizerBase


class KnownSubjects(NamedTuple):
    """What an edit may change in the index of subjects, and in the check of relations, where there is one.

    Attributes:
        entries: of the index, int64 [n, 2].
        scope: the index's scope, in tokens after a mention.
        prints: of the check, int64 [m]; empty without one.
        keys: of the check, [m, k].
    """

    entries: Tensor
    scope: int
    prints: Tensor
    keys: Tensor

    def equals(self, other: KnownSubjects) -> bool:
        """To the bit."""
        return self.scope == other.scope and all(
            torch.equal(getattr(self, name), getattr(other, name)) for name in ("entries", "prints", "keys")
        )

    def undo_tensors(self, after: KnownSubjects) -> dict[str, Tensor]:
        """What `SubjectKeeper.undo` needs to come back here from `after`."""
        tensors = {
            "added": _without(after.entries, self.entries),
            "removed": _without(self.entries, after.entries),
            "reach": torch.tensor(self.scope),
        }
        if not (torch.equal(after.prints, self.prints) and torch.equal(after.keys, self.keys)):
            tensors |= {"prints": self.prints, "keys": self.keys}
        return tensors


class SubjectKeeper:
    """Enters the subjects of facts into a memory, and takes them out again.

    Args:
        memory: the memory in its model.
        tokenizer: the backbone's.
        encoded: of each of a fact's phrasings prompt and answer.
        phrasings: of facts, folded.
    """

    def __init__(
        self,
        memory: MemoryHandle,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Callable[[Fact], list[Encoded]],
        phrasings: FoldedPhrasings,
    ) -> None:
        self.memory, self.tokenizer, self.encoded, self.phrasings = memory, tokenizer, encoded, phrasings

    @property
    def index(self) -> SubjectIndex | None:
        """The index, where the memory's gate knows its subjects."""
        return self.memory.index

    @property
    def check(self) -> RelationCheck | None:
        """The check of relations, where there is one."""
        return self.memory.relations

    def state(self) -> KnownSubjects | None:
        """A copy of what is known now; None where there is no index."""
        index, check = self.index, self.check
        if index is None:
            return None
        keys = (index.entries[:0], index.entries[:0]) if check is None else (check.prints.clone(), check.keys.clone())
        return KnownSubjects(index.entries, int(index.reach), *keys)

    def change(self, before: KnownSubjects | None) -> tuple[KnownSubjects, KnownSubjects] | None:
        """The state before and the one now, where they differ."""
        now = self.state()
        return None if before is None or now is None or before.equals(now) else (before, now)

    def restore(self, state: KnownSubjects | None) -> None:
        """Back to an earlier state, bit for bit; nothing for None."""
        index = self.index
        if state is None or index is None:
            return
        index.store(state.entries)
        index.reach.fill_(state.scope)
        if self.check is not None:
            self.check.store(state.prints, state.keys)

    def undo(self, tensors: dict[str, Tensor]) -> None:
        """Back to what `KnownSubjects.undo_tensors` was written down from; nothing where these are not among them."""
        index, check = self.index, self.check
        if index is None or "reach" not in tensors:
            return
        index.store(torch.cat([_without(index.entries, tensors["added"]), tensors["removed"]]))
        index.reach.copy_(tensors["reach"])
        if check is not None and "prints" in tensors:
            check.store(tensors["prints"], tensors["keys"])

    def enter(self, facts: Sequence[Fact], stored: Sequence[Fact], words: Counter[str]) -> None:
        """Has the memory know the subjects of these facts, and what is asked of those that are new.

        Args:
            facts: at least one.
            stored: the facts so far.
            words: `mention_forms.word_fact_counts` of the facts so far.
        """
        index, check = self.index, self.check
        if index is None:
            return
        aliases = aliases_by_subject([*stored, *facts])
        found, scopes = zip(*(self._forms(fact, stored, words, aliases) for fact in facts), strict=True)
        entries = [index.entries_of(each) for each in found]
        index.store(torch.cat([index.entries, *(each.to(index.fingerprints.device) for each in entries)]))
        index.reach.fill_(max(int(index.reach), *scopes))
        ids = {fact.id for fact in stored}
        new = [(fact, each[:, 0]) for fact, each in zip(facts, entries, strict=True) if fact.id not in ids]
        if check is not None and new:
            prints = torch.cat([check.prints, *(prints.to(check.prints) for _, prints in new)])
            keys = self._keys([fact for fact, _ in new], prints)
            keys = keys.repeat_interleave(torch.tensor([len(prints) for _, prints in new]).to(keys.device), dim=0)
            check.store(prints, torch.cat([check.keys, keys.to(check.keys)]))
        for fact, forms in zip(facts, found, strict=True):
            self._share_keys(forms, aliases.get(fact.subject, ()))

    def remove(self, facts: Sequence[Fact], stored: Sequence[Fact], words: Counter[str]) -> None:
        """Takes out the subjects that no fact left needs, and of the others what was asked of them in these facts.

        Args:
            facts: at least one, of the stored ones.
            stored: all facts so far.
            words: `mention_forms.word_fact_counts` of them.
        """
        index = self.index
        if index is None:
            return
        aliases = aliases_by_subject(stored)
        gone = {form for fact in facts for form in self._forms(fact, stored, words, aliases)[0]}
        ids = {fact.id for fact in facts}
        others = [fact for fact in stored if fact.id not in ids]
        left = self._naming(gone, others, stored, words, {fact.subject for fact in facts})
        gone_prints, needed = self._prints(gone), self._prints({form for _, forms in left for form in forms})
        self._take_out(gone_prints, needed)
        still = [fact for fact, forms in left if bool(torch.isin(self._prints(forms), gone_prints).any())]
        self._remove_keys(facts, still, gone_prints[torch.isin(gone_prints, needed)])

    def rename(self, subject: str, stored: Sequence[Fact], after: Sequence[Fact], words: Counter[str]) -> list[str]:
        """Has the memory know a subject by the aliases that its facts give after an edit, and by no others.

        Args:
            subject: of some of the facts.
            stored: all facts so far.
            after: the same facts after the edit, which changes the subject's aliases alone.
            words: `mention_forms.word_fact_counts` of them.

        Returns:
            Of these aliases those that do not link to the subject, as they stand for another one in the index.
        """
        index, check = self.index, self.check
        if index is None:
            return []
        aliases = aliases_by_subject(after).get(subject, ())
        before, now = (self._forms_about(subject, facts, words) for facts in (stored, after))
        others = [fact for fact in after if fact.subject != subject]
        naming = self._naming(set(before) - set(now), others, after, words)
        self._take_out(self._prints(before), self._prints({*now, *(form for _, forms in naming for form in forms)}))
        index.store(torch.cat([index.entries, index.entries_of(now).to(index.fingerprints.device)]))
        if check is not None:
            self._keep_keys(torch.isin(check.prints, index.fingerprints))
        self._share_keys(now, aliases)
        own = index.entries_of(now)[:, 1].to(index.subjects.device)
        of_others = index.fingerprints[~torch.isin(index.subjects, own)].cpu()
        found = {alias: self._prints(alias_forms(self.tokenizer, [alias])) for alias in aliases}
        return [alias for alias, prints in found.items() if bool(torch.isin(prints, of_others).any())]

    def _naming(
        self,
        forms: Collection[tuple[int, ...]],
        facts: Sequence[Fact],
        stored: Sequence[Fact],
        words: Counter[str],
        subjects: Collection[str] = (),
    ) -> list[tuple[Fact, set[tuple[int, ...]]]]:
        """Those of some facts that are about these subjects or name one of these forms; each with all its forms."""
        texts = {text for form in forms if (text := folded(str(self.tokenizer.decode(list(form)))))}
        naming = {fact.id for fact, _ in self.phrasings.holding(facts, texts)}
        named = [fact for fact in facts if (fact.subject and fact.subject in subjects) or fact.id in naming]
        aliases = aliases_by_subject(facts)
        return [(fact, set(self._forms(fact, stored, words, aliases)[0])) for fact in named]

    def _take_out(self, prints: Tensor, needed: Tensor) -> None:
        """Takes those of these fingerprints out of the index that are not needed, int64 both."""
        assert self.index is not None
        unneeded = prints[~torch.isin(prints, needed)].to(self.index.fingerprints.device)
        self.index.store(self.index.entries[~torch.isin(self.index.fingerprints, unneeded)])

    def _prints(self, forms: Collection[tuple[int, ...]]) -> Tensor:
        """The fingerprints of some forms, int64 [n]."""
        assert self.index is not None
        return self.index.entries_of({form: form for form in forms})[:, 0]

    def _share_keys(self, forms: Collection[tuple[int, ...]], aliases: Sequence[str]) -> None:
        """Has the aliases of a subject ask for whatever was taught of it under any of its names.

        Args:
            forms: the subject's, those of its aliases among them.
            aliases: the subject's.
        """
        check = self.check
        if check is None or not aliases:
            return
        own, named = (self._prints(each).to(check.prints) for each in (forms, alias_forms(self.tokenizer, aliases)))
        named = named.unique()
        keys = check.keys[torch.isin(check.prints, own)].float().unique(dim=0)  # exact, and float16 has no unique
        others = ~torch.isin(check.prints, named)
        check.store(
            torch.cat([check.prints[others], named.repeat_interleave(len(keys))]),
            torch.cat([check.keys[others], keys.repeat(len(named), 1).to(check.keys)]),
        )

    def _keep_keys(self, kept: Tensor) -> None:
        """Keeps these entries of the check, bool [n], and no others."""
        assert self.check is not None
        kept[0] |= not bool(kept.any())  # a placeholder, as in the index
        self.check.store(self.check.prints[kept], self.check.keys[kept])

    def _remove_keys(self, facts: Sequence[Fact], left: Sequence[Fact], shared: Tensor) -> None:
        """Keys of subjects that are gone, and of those that `left` are still about the keys nearer to `facts`.

        Args:
            facts: that are forgotten.
            left: facts about the same subjects that stay.
            shared: the fingerprints of these subjects' forms, int64.
        """
        check, index = self.check, self.index
        if check is None or index is None:
            return
        kept = torch.isin(check.prints, index.fingerprints)
        if len(shared) and left:
            near, own = (self._keys(each, check.prints).float() for each in (left, facts))
            prints = shared.to(check.prints.device)
            keys = check.keys.float()
            forgotten = (keys @ own.T.to(keys)).amax(1) > (keys @ near.T.to(keys)).amax(1)
            kept &= ~(torch.isin(check.prints, prints) & forgotten)
        self._keep_keys(kept)

    def _keys(self, facts: Sequence[Fact], prints: Tensor) -> Tensor:
        return relation_keys(self.memory, self.tokenizer, facts, prints)

    def _forms(
        self,
        fact: Fact,
        stored: Sequence[Fact],
        words: Counter[str],
        aliases: Mapping[str, Sequence[str]],
    ) -> tuple[dict[tuple[int, ...], tuple[int, ...]], int]:
        """The surface forms of a fact's subject, each with the one that names its entity, and their scope in tokens."""
        assert self.index is not None
        contexts, marks = [one.input_ids for one in self.encoded(fact)], self.index.marks.cpu()
        names = aliases.get(fact.subject, ())
        found = fact_forms(self.tokenizer, fact, contexts, words, max(len(stored), 1), marks, aliases=names)
        return found.with_longer_names(marks), found.scope

    def _forms_about(
        self, subject: str, stored: Sequence[Fact], words: Counter[str]
    ) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The surface forms of a subject in all facts about it, each with the one that names its entity."""
        aliases = aliases_by_subject(stored)
        about = [self._forms(fact, stored, words, aliases)[0] for fact in stored if fact.subject == subject]
        return {form: entity for forms in about for form, entity in forms.items()}


def _without(entries: Tensor, others: Tensor) -> Tensor:
    """The entries of an index, int64 [n, 2], whose fingerprints are not among the others'."""
    return entries[~torch.isin(entries[:, 0], others[:, 0])]
