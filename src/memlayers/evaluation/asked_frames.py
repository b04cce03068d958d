"""The wordings that `asked` puts a fact into: frames by relation, and what stands around a question. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple


class Frame(NamedTuple):
    """How one relation is asked for in other forms than the facts' own; ``{s}`` is the subject, ``{a}`` the answer.

    Attributes:
        statement: a statement to complete.
        possessive: a question with the subject in the possessive.
        yes_no: a question to be answered by yes or no.
        negated: a question that the answer is no answer to.
        reversed: a question about the answer, to be answered by the subject.
        german: the question in German; "" where there is none.
        person: whether the subjects are persons.
    """

    statement: str
    possessive: str
    yes_no: str
    negated: str
    reversed: str
    german: str
    person: bool = False


def frame_of(relation: str) -> Frame:
    """The frame of a relation: its own in `FRAMES`, or one that is built from its name."""
    name = relation.replace("{", "{{").replace("}", "}}")
    return FRAMES.get(relation) or Frame(
        f"The {name} of {{s}} is",
        f"What is {{s}}'s {name}?",
        f"Is {{a}} the {name} of {{s}}?",
        f"What is not the {name} of {{s}}?",
        f"What has {{a}} as its {name}?",
        "",
        relation in _OF_PERSONS,
    )


FRAMES: Final[Mapping[str, Frame]] = MappingProxyType(
    {
        "owner": Frame(
            "The owner of {s} is", "Who is {s}'s owner?", "Is {s} owned by {a}?", "Who does not own {s}?",
            "What does {a} own?", "Wem gehört {s}?",
        ),
        "genre": Frame(
            "The genre of {s} is", "What is {s}'s genre?", "Does {s} belong to the genre {a}?",
            "Which genre does {s} not belong to?", "Which artist or work is of the genre {a}?",
            "Zu welchem Genre gehört {s}?",
        ),
        "manufacturer": Frame(
            "The manufacturer of {s} is", "Who is {s}'s manufacturer?", "Was {s} made by {a}?",
            "Which company did not make {s}?", "What does {a} manufacture?", "Welche Firma hat {s} hergestellt?",
        ),
        "creator": Frame(
            "The creator of {s} is", "Who is {s}'s creator?", "Was {s} created by {a}?", "Who did not create {s}?",
            "What did {a} create?", "Wer hat {s} geschaffen?",
        ),
        "headquarters": Frame(
            "The headquarters of {s} are in", "Where are {s}'s headquarters?", "Is {s} headquartered in {a}?",
            "In which city is {s} not headquartered?", "Which organization is headquartered in {a}?",
            "Wo hat {s} seinen Hauptsitz?",
        ),
        "place of birth": Frame(
            "The birthplace of {s} is", "What is {s}'s birthplace?", "Was {s} born in {a}?", "Where was {s} not born?",
            "Who was born in {a}?", "Wo wurde {s} geboren?", person=True,
        ),
        "performer": Frame(
            "The performer of {s} is", "Who is {s}'s performer?", "Was {s} performed by {a}?",
            "Who did not perform {s}?", "What did {a} perform?", "Von wem stammt die Aufnahme {s}?",
        ),
        "founder": Frame(
            "The founder of {s} is", "Who is {s}'s founder?", "Was {s} founded by {a}?", "Who did not found {s}?",
            "What did {a} found?", "Wer hat {s} gegründet?",
        ),
        "place of death": Frame(
            "The place of death of {s} is", "What is {s}'s place of death?", "Did {s} die in {a}?",
            "Where did {s} not die?", "Who died in {a}?", "Wo ist {s} gestorben?", person=True,
        ),
        "administrative area": Frame(
            "The administrative area that {s} lies in is", "What is {s}'s administrative area?",
            "Does {s} lie in {a}?", "In which administrative area does {s} not lie?", "What lies in {a}?",
            "In welcher Verwaltungseinheit liegt {s}?",
        ),
        "record label": Frame(
            "The record label of {s} is", "What is {s}'s record label?", "Was {s} released on {a}?",
            "Which record label was {s} not released on?", "Which artist or record came out on {a}?",
            "Bei welchem Plattenlabel ist {s} erschienen?",
        ),
        "capital": Frame(
            "The capital of {s} is", "What is {s}'s capital?", "Is {a} the capital of {s}?",
            "Which city is not the capital of {s}?", "What is {a} the capital of?", "Wie heißt die Hauptstadt von {s}?",
        ),
        "child": Frame(
            "The child of {s} is", "What is {s}'s child called?", "Is {a} a child of {s}?",
            "Who is not a child of {s}?", "Who is the parent of {a}?", "Wer ist das Kind von {s}?", person=True,
        ),
        "spouse": Frame(
            "The spouse of {s} is", "Who is {s}'s spouse?", "Is {s} married to {a}?", "Who is not married to {s}?",
            "Whom did {a} marry?", "Mit wem ist {s} verheiratet?", person=True,
        ),
        "educated at": Frame(
            "The alma mater of {s} is", "What is {s}'s alma mater?", "Did {s} study at {a}?",
            "Where did {s} not study?", "Who studied at {a}?", "Wo hat {s} studiert?", person=True,
        ),
        "place of founding": Frame(
            "The place where {s} was founded is", "What is {s}'s place of founding?", "Was {s} founded in {a}?",
            "Where was {s} not founded?", "What was founded in {a}?", "Wo wurde {s} gegründet?",
        ),
        "author": Frame(
            "The author of {s} is", "Who is {s}'s author?", "Was {s} written by {a}?", "Who did not write {s}?",
            "What did {a} write?", "Wer hat {s} geschrieben?",
        ),
        "notable work": Frame(
            "The best-known work of {s} is", "What is {s}'s best-known work?", "Is {s} known for {a}?",
            "What is {s} not known for?", "Who is known for {a}?", "Für welches Werk ist {s} bekannt?", person=True,
        ),
    }
)  # fmt: skip
"""The frames of the demo's relations."""

_OF_PERSONS: Final = frozenset(
    (
        "occupation", "profession", "position played", "employer", "nationality", "country of citizenship", "religion",
        "date of birth", "date of death", "father", "mother", "sibling", "award", "award received", "birth", "death",
    )
)  # fmt: skip

ANY_RELATION: Final = "What is the {relation} of {s}?"
"""The base wording of a fact that has none which was not taught."""

PREAMBLE: Final = "Hi, I have a quick question about something I read: {q}"
SENTENCE: Final = "{q} Please answer in a full sentence."
PARAGRAPHS: Final = (
    "Thank you for the long letter, which arrived this morning while the kettle was on. I read it twice, once quickly "
    "and once with a pencil in my hand, and there is one thing that I could not find in it. {q} Everything else was "
    "clear to me, and the part about the garden made me laugh. The weather here has been kind, so the windows are open "
    "again and the bread is nearly done.",
    "I am preparing a short quiz for the next evening with friends, and most of the cards are written already. One of "
    "them still has an empty back, because I lost the page on which I had noted what belongs there. {q} It would be a "
    "great help to have that settled today, since the cards have to be printed, cut and sorted before everybody comes "
    "in from the cold and wants to begin.",
    "While tidying the shelves I came across an old notebook, and on its last page somebody had written down a few "
    "things to look up later. Most of them were crossed out a long time ago, but one line was still open. {q} I have "
    "no idea why it mattered then, and the ink has faded a little, yet I would like to close that page before I put "
    "the book back in its box.",
)
"""Neutral prose without names, some 60 words, with a question in its middle."""

OPENING: Final = (("user", "Tell me about {s}."), ("assistant", "Gladly. What would you like to know?"))
SMALL_TALK: Final = (
    ("user", "One moment, I am making tea."),
    ("assistant", "Take your time."),
    ("user", "Thank you, that is kind of you."),
    ("assistant", "You are welcome. I am here when you are ready."),
)
