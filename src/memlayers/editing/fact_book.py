"""The stored facts and the journal beside them: which fact is meant, and what an edit of it would be. No torch.

Everything that can be refused without the model is refused here, before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from memlayers.data.fact_files import facts_text
from memlayers.data.facts import Fact, SharedName, alias_fault, aliases_by_subject, folded, question_key, shared_names
from memlayers.editing.journal import (
    Change,
    Record,
    apply_changes,
    changes_from_text,
    digests,
    last_undoable,
    read_journal,
    undo_metadata,
)
from memlayers.inference.folder import FACTS_FILE, stored_facts
from memlayers.utils.errors import InputError


class FactBook:
    """The facts that a memory's folder holds, and the edits that were made.

    Its methods `plan_...` say what an edit would change, or refuse it.

    Args:
        folder: of the memory.

    Attributes:
        folder: of the memory.
        facts: in order, with the edits that are not saved yet.

    Raises:
        InputError: not a memory's folder, one that does not remember its facts, or a damaged list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = stored_facts(folder)
        self._journal: tuple[list[Record], str | None] | None = None
        self._digests: dict[str, str] | None = None
        self._questions: dict[str, list[str]] | None = None
        self._lines: dict[str, tuple[Fact, str]] = {}

    @property
    def records(self) -> list[Record]:
        """The saved edits, oldest first.

        Raises:
            InputError: a line of the journal before the last one is damaged.
        """
        return self._read_journal()[0]

    @property
    def notice(self) -> str | None:
        """One line about a journal that was cut off, if it was."""
        return self._read_journal()[1]

    def _read_journal(self) -> tuple[list[Record], str | None]:
        if self._journal is None:
            self._journal = read_journal(self.folder)
        return self._journal

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files that make up the memory, found once: nobody else changes them during an edit."""
        if self._digests is None:
            self._digests = digests(self.folder)
        return dict(self._digests)

    def saved(self, records: list[Record], found: dict[str, str]) -> None:
        """After the folder was written anew: its journal, and its files' digests."""
        self._journal = (records, None)
        self._digests = found

    def facts_text(self, facts: Sequence[Fact]) -> str:
        """The file of these facts, the stored ones before an edit or after it; the line of each is made once.

        Raises:
            InputError: one could not be read back (an empty text, an id used twice).
        """
        path, lines = self.folder / FACTS_FILE, dict[str, tuple[Fact, str]]()
        for fact in facts:
            known = self._lines.get(fact.id)
            lines[fact.id] = known if known is not None and known[0] is fact else (fact, facts_text(path, [fact]))
        if len(lines) < len(facts):
            return facts_text(path, facts)  # refuses them
        self._lines = lines
        return "".join(line for _, line in lines.values())

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes these changes in the list of facts."""
        self.facts = apply_changes(self.facts, changes)
        if self._questions is not None:
            for change in changes:
                for key in _keys(change.before):
                    self._questions[key].remove(change.before.id)  # type: ignore[union-attr]  # None has no keys
                for key in _keys(change.after):
                    self._questions.setdefault(key, []).append(change.after.id)  # type: ignore[union-attr]

    # -- plans --------------------------------------------------------------------------------------------------------

    def plan_add(self, facts: Sequence[Fact]) -> list[Change]:
        """The changes that add these facts.

        Raises:
            InputError: there are none, an id is stored, a question is one of another fact, or an alias of a subject is
                a name of another.
        """
        _require_some("add", facts)
        stored = {fact.id for fact in self.facts}
        for fact in facts:
            if fact.id in stored:
                raise InputError(f"fact {fact.id!r} is stored already: `memlayers update` changes it")
            stored.add(fact.id)
        self._refuse_clashes([], facts)
        return self._named_apart([Change(len(self.facts) + i, None, fact) for i, fact in enumerate(facts)])

    def plan_update(self, facts: Sequence[Fact]) -> list[Change]:
        """The changes that give stored facts these facts' answers, and their phrasings and names besides their own.

        Raises:
            InputError: there are none, one is not stored, or several could be meant; or an update contradicts a stored
                fact, or has an alias of a subject that is a name of another.
        """
        _require_some("update", facts)
        changes: list[Change] = []
        for fact in facts:
            place = self._place_of(fact)
            before = self.facts[place]
            if any(change.place == place for change in changes):
                raise InputError(f"fact {before.id!r} is updated twice; give it one answer")
            if fact.subject and before.subject and fact.subject != before.subject:
                raise InputError(
                    f"fact {before.id!r} is about {before.subject!r}, its update about {fact.subject!r}: "
                    "forget it and add the other"
                )
            questions = (*before.questions, *(q for q in fact.questions if q not in before.questions))
            unseen = dict.fromkeys((*before.unseen_questions, *fact.unseen_questions))
            unseen_questions = tuple(q for q in unseen if q not in questions)
            names = aliases_by_subject([before, replace(fact, subject=before.subject)]).get(before.subject, ())
            after = replace(
                before, answer=fact.answer, aliases=fact.aliases, questions=questions,
                unseen_questions=unseen_questions, subject_aliases=names, sources=fact.sources,
            )  # fmt: skip
            changes.append(Change(place, before, after))
        self._refuse_clashes(*both_sides(changes))
        return self._named_apart(changes)

    def plan_forget(
        self, ids: Sequence[str] = (), subject: str | None = None, facts: Sequence[Fact] = ()
    ) -> list[Change]:
        """The changes that take out the facts of these ids, about this subject, and those meant by `facts`.

        Raises:
            InputError: nothing is named, or something that is not stored.
        """
        places = [self._place_of_id(each) for each in ids] + [self._place_of(fact) for fact in facts]
        if subject is not None:
            places += self._places_about(subject)
        if not places:
            raise InputError("nothing to forget: name facts by id, by subject or by a file")
        return [Change(place, self.facts[place], None) for place in sorted(set(places), reverse=True)]

    def plan_add_aliases(self, subject: str, aliases: Sequence[str]) -> list[Change]:
        """The changes that give all facts about a subject these aliases.

        Raises:
            InputError: there are none, no stored fact is about it, or an alias is empty or too long, its name or its
                alias already, or a name of another subject.
        """
        places = self._places_about(subject)
        _require_aliases("add", aliases)
        held = [folded(alias) for alias in aliases_by_subject(self.facts).get(subject, ())]
        for alias in aliases:
            if fault := alias_fault(subject, alias):
                raise InputError(fault)
            if folded(alias) in held:
                raise InputError(f"{alias!r} is an alias of {subject!r} already; leave it out")
            held.append(folded(alias))
        facts = [self.facts[place] for place in places]
        named = [replace(fact, subject_aliases=(*fact.subject_aliases, *aliases)) for fact in facts]
        return self._named_apart([Change(*each) for each in zip(places, facts, named, strict=True)])

    def plan_remove_aliases(self, subject: str, aliases: Sequence[str]) -> list[Change]:
        """The changes that take these aliases from all facts about a subject.

        Raises:
            InputError: there are none, no stored fact is about it, or one is no alias of it.
        """
        places = self._places_about(subject)
        _require_aliases("remove", aliases)
        held = aliases_by_subject(self.facts).get(subject, ())
        for alias in aliases:
            if folded(alias) not in map(folded, held):
                hint = _hint(alias, held)
                raise InputError(
                    f"{alias!r} is no alias of {subject!r}; {hint}`memlayers alias list` shows those that are"
                )
        gone = set(map(folded, aliases))
        changes = []
        for place in places:
            fact = self.facts[place]
            left = tuple(alias for alias in fact.subject_aliases if folded(alias) not in gone)
            if left != fact.subject_aliases:
                changes.append(Change(place, fact, replace(fact, subject_aliases=left)))
        return changes

    def plan_sources(self, facts: Sequence[Fact]) -> list[Change]:
        """The changes that give stored facts, found by their ids, these facts' sources; none where they have them.

        Raises:
            InputError: an id is not stored.
        """
        places = [(self._place_of_id(fact.id), fact) for fact in facts]
        return [
            Change(place, self.facts[place], replace(self.facts[place], sources=fact.sources))
            for place, fact in places
            if self.facts[place].sources != fact.sources
        ]

    def plan_undo(self) -> tuple[Record, list[Change]]:
        """The last edit that was not taken back, and the changes that it made.

        Raises:
            InputError: there is none, its undo data is gone or damaged, or something else changed the memory since.
        """
        record = last_undoable(self.records)
        if record is None:
            raise InputError(f"{self.folder}: no edit to take back")
        path = self.folder / record.undo_file
        if not path.is_file():
            raise InputError(f"{self.folder}: edit {record.number} cannot be taken back: its undo data is gone")
        last = self.records[-1].after
        if last and self.digests() != last:
            raise InputError(
                f"{self.folder}: something else changed this memory since edit {self.records[-1].number}; nothing was "
                "taken back"
            )
        words = undo_metadata(path)
        try:
            return record, changes_from_text(words["changes"] if words else "")
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({error}); edit {record.number} cannot be taken back") from error

    # -- which fact is meant ------------------------------------------------------------------------------------------

    def _places_about(self, subject: str) -> list[int]:
        about = [place for place, fact in enumerate(self.facts) if subject and fact.subject == subject]
        if about:
            return about
        hint = _hint(subject, (fact.subject for fact in self.facts))
        raise InputError(f"no stored fact is about {subject!r}; {hint}`memlayers list` shows what is stored")

    def _place_of_id(self, fact_id: str) -> int:
        for place, fact in enumerate(self.facts):
            if fact.id == fact_id:
                return place
        hint = _hint(fact_id, (fact.id for fact in self.facts))
        raise InputError(
            f"no stored fact has the id {fact_id!r} (any more); {hint}`memlayers list` shows what is stored"
        )

    def _place_of(self, fact: Fact) -> int:
        """The stored fact that this one is meant to be: by id, by subject and relation, by a question."""
        for place, stored in enumerate(self.facts):
            if stored.id == fact.id:
                return place
        alike = [
            place
            for place, stored in enumerate(self.facts)
            if fact.subject and (stored.subject, stored.relation) == (fact.subject, fact.relation)
        ]
        if len(alike) != 1:
            ids = {each for question in fact.questions for each in self._asking(question_key(question))}
            alike = [place for place, stored in enumerate(self.facts) if stored.id in ids]
        if not alike:
            raise InputError(
                f"fact {fact.id!r} is not stored: no stored fact has its id, its subject and relation, or one of its "
                "questions; `memlayers list` shows what is stored"
            )
        if len(alike) > 1:
            raise InputError(f"fact {fact.id!r} could be any of {len(alike)} stored facts: give the id of one of them")
        return alike[0]

    def _asking(self, key: str) -> list[str]:
        """The ids of the stored facts that ask a question, taught or unseen, given by its `question_key`."""
        if self._questions is None:
            self._questions = {}
            for fact in self.facts:
                for each in _keys(fact):
                    self._questions.setdefault(each, []).append(fact.id)
        return self._questions.get(key, [])

    def _named_apart(self, changes: list[Change]) -> list[Change]:
        """These changes, unless an alias of a subject would be a name of another by them."""
        names = {name for fact in both_sides(changes)[1] for name in _names(fact)}
        if found := _shared_of(names, apply_changes(self.facts, changes)):
            before = _shared_of(names, self.facts)
            for shared in found:
                if shared not in before:
                    raise InputError(
                        f"{shared.alias!r} would be a name of {shared.subjects[0]!r} and of {shared.subjects[1]!r}: "
                        "take it from one of them, or tell of both under one subject"
                    )
        return changes

    def _refuse_clashes(self, old: Sequence[Fact], new: Sequence[Fact]) -> None:
        """Refuses facts that contradict another one, or that ask anew what another one asks.

        Args:
            old: the stored facts whose place `new` take.
            new: the facts to be stored.
        """
        gone = {fact.id for fact in old}
        asked_before = {fact.id: _keys(fact) for fact in old}
        stored: dict[str, Fact] | None = None
        among: dict[str, Fact] = {}
        for fact in new:
            accepted = {question_key(answer) for answer in fact.answers}
            for question in (*fact.questions, *fact.unseen_questions):
                key = question_key(question)
                others = [each for each in self._asking(key) if each not in gone]
                if others and stored is None:
                    stored = {each.id: each for each in self.facts}
                for other in [among.get(key), *((stored or {})[each] for each in others)]:
                    if other is None or other.id == fact.id:
                        continue
                    if accepted.isdisjoint(question_key(answer) for answer in other.answers):
                        raise InputError(
                            f"fact {fact.id!r} answers {question!r} with {fact.answer!r}, fact {other.id!r} with "
                            f"{other.answer!r}; update that one, or forget it first"
                        )
                    if key not in asked_before.get(fact.id, ()):
                        raise InputError(
                            f"fact {fact.id!r} asks {question!r}, which fact {other.id!r} asks already, with the same "
                            f"answer; leave it out, or update {other.id!r}"
                        )
                among[key] = fact


def _require_some(kind: str, facts: Sequence[Fact]) -> None:
    if not facts:
        raise InputError(f"nothing to {kind}: give at least one fact")


def _require_aliases(kind: str, aliases: Sequence[str]) -> None:
    if isinstance(aliases, str):
        raise InputError("aliases is a text: give a list of texts")
    if not aliases:
        raise InputError(f"nothing to {kind}: give at least one alias")


def _keys(fact: Fact | None) -> set[str]:
    """Of all its questions, taught and unseen."""
    return {question_key(q) for q in (*fact.questions, *fact.unseen_questions)} if fact else set()


def _names(fact: Fact) -> list[str]:
    """The folded letters of its subject and of its aliases."""
    return [folded(name) for name in (fact.subject, *fact.subject_aliases)]


def _shared_of(names: set[str], facts: Sequence[Fact]) -> list[SharedName]:
    """The `shared_names` of facts that are among these, folded."""
    named = [fact for fact in facts if not names.isdisjoint(_names(fact))]
    return [shared for shared in shared_names(named) if folded(shared.alias) in names]


def both_sides(changes: Sequence[Change]) -> tuple[list[Fact], list[Fact]]:
    """The facts that are taken out, and those that are put in."""
    return [c.before for c in changes if c.before], [c.after for c in changes if c.after]


def _hint(name: str, stored: Iterable[str]) -> str:
    """The words "did you mean ...? " with the stored name that is nearest, whatever its case; "" where none is near."""
    by_key = {each.casefold(): each for each in stored if each}
    near = get_close_matches(name.casefold(), by_key, n=1)
    return f"did you mean {by_key[near[0]]!r}? " if near else ""
