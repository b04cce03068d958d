"""Facts compared with those that a memory holds: stored already, an update, or in each other's way. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memlayers.data.facts import Fact, aliases_by_subject, folded, question_key, shared_names
from memlayers.sources.findings import Finding, Noting, alias_givers, free_id, listed, shortened


class StoredFacts:
    """The facts of a memory, and which of them another fact is.

    Args:
        facts: that it holds.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.facts = facts
        self._by_id = {fact.id: fact for fact in facts}
        self._by_relation: dict[tuple[str, str], list[Fact]] = {}
        self._by_question: dict[str, list[Fact]] = {}
        for fact in facts:
            if fact.subject and fact.relation:
                self._by_relation.setdefault((fact.subject, fact.relation), []).append(fact)
            for question in (*fact.questions, *fact.unseen_questions):
                self._by_question.setdefault(question_key(question), []).append(fact)
        self.subjects = {folded(fact.subject): fact.subject for fact in facts}
        self.aliases = {folded(a): subject for subject, own in aliases_by_subject(facts).items() for a in own}

    def of_id(self, fact: Fact) -> Fact | None:
        """The stored fact of the same id."""
        return self._by_id.get(fact.id)

    def match(self, fact: Fact) -> Fact | None:
        """The stored fact that a fact says anew, or otherwise: by id, by subject and relation, by a question.

        What `memlayers update` would change is the same one.
        """
        own = self.of_id(fact)
        if own is not None and _same_subject(own, fact):
            return own
        alike = self._by_relation.get((fact.subject, fact.relation), ())
        if len(alike) == 1:
            return alike[0]
        return next((each for each in self.asking(fact) if _same_subject(each, fact)), None)

    def asking(self, fact: Fact) -> Iterator[Fact]:
        """The stored facts that ask one of a fact's questions."""
        for question in (*fact.questions, *fact.unseen_questions):
            yield from self._by_question.get(question_key(question), ())

    def asked_by_others(self, question: str, own: Fact | None) -> list[Fact]:
        """The stored facts, other than `own`, that ask a question."""
        return [each for each in self._by_question.get(question_key(question), ()) if each is not own]


def is_update(fact: Fact, stored: StoredFacts) -> bool:
    """Whether a fact gives another answer than the stored fact that it says anew."""
    own = stored.match(fact)
    return own is not None and not _agrees(fact, own)


def stored_findings(facts: Sequence[Fact], held: Sequence[Fact], note: Noting) -> Iterator[Finding]:
    """What stands between some facts and a memory.

    Args:
        facts: to be taught.
        held: the facts of the memory.
        note: of `facts`.
    """
    stored = StoredFacts(held)
    ids = {fact.id for fact in (*facts, *held)}
    for i, fact in enumerate(facts):
        same_id, own = stored.of_id(fact), stored.match(fact)
        if own is not None and _agrees(fact, own):
            yield note("stored_already", [i], f"fact {own.id!r} of the memory says so already: leave it out")
            continue
        if own is not None:
            yield note(
                "update", [i],
                f"the memory answers {shortened(own.questions[0])!r} with {shortened(own.answer)!r}, this file with "
                f"{shortened(fact.answer)!r}: `memlayers update` gives it the new answer",
            )  # fmt: skip
        if same_id is not None and not _same_subject(same_id, fact):
            ids.add(new := free_id(fact.id, ids))
            yield note(
                "stored_id", [i],
                f"{fact.id!r} is the id of a stored fact about {shortened(same_id.subject)!r}: give it another",
                texts=(new,),
            )  # fmt: skip
        others = {
            wording: stored.asked_by_others(wording, own) for wording in (*fact.questions, *fact.unseen_questions)
        }
        if asked := [wording for wording, by in others.items() if by]:
            other = others[asked[0]][0]
            yield note(
                "stored_question", [i],
                f"{listed(asked)} is asked by stored fact {other.id!r} about {shortened(other.subject)!r}, too: word "
                "it so that it says which is meant", texts=(*asked,),
            )  # fmt: skip
        name = folded(fact.subject)
        if name in stored.aliases and name not in stored.subjects:
            subject = stored.aliases[name]
            yield note(
                "stored_alias", [i],
                f"{shortened(fact.subject)!r} is an alias of {shortened(subject)!r} in the memory: tell of it under "
                "that name", texts=(subject,),
            )  # fmt: skip
    before, givers = shared_names(held), alias_givers(facts)
    known = {folded(shared.alias) for shared in shared_names(facts)}  # and told
    for shared in shared_names([*held, *facts]):
        places = givers.get(folded(shared.alias))
        if places and shared not in before and folded(shared.alias) not in known:
            yield note(
                "shared_name", places,
                f"{shared.alias!r} is a name of {listed(shared.subjects)}, in the memory or here: leave it to one of "
                "them", texts=(shared.alias,),
            )  # fmt: skip


def _same_subject(one: Fact, other: Fact) -> bool:
    """Whether two facts may be about the same subject: one that names none may."""
    names = {folded(one.subject), folded(other.subject)} - {""}
    return len(names) < 2


def _agrees(fact: Fact, stored: Fact) -> bool:
    return question_key(fact.answer) in map(question_key, stored.answers)
