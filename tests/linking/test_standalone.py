"""Questions as people put them become questions that stand alone."""

from __future__ import annotations

import pytest

from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.linking.config import LinkConfig
from memlayers.linking.linker import Mention, NameLinker
from memlayers.linking.standalone import Standalone, standalone_questions

FACTS = [
    Fact("a", "Kylotonn", "Yann Tamb", ("Who founded Kylotonn?", "Name the founder of Kylotonn."), "founder"),
    Fact("b", "Igor Kvetnoy", "Minsk", ("Where was Igor Kvetnoy born?",), "place of birth"),
    Fact("c", "Igor Kvetnoy", "Ann", ("Who is Igor Kvetnoy married to?",), "spouse"),
    Fact("d", "The Great Wolf", "Bo", ("Who wrote The Great Wolf?",), "author"),
    Fact("e", "Mercury (planet)", "small", ("What is the size of Mercury (planet)?",)),
    Fact("f", "Mercury (god)", "Jupiter", ("Who is the father of Mercury (god)?",)),
    Fact("g", "Chemikal Underground", "The Delgados", ("Who founded Chemikal Underground?",), "founder"),
]
LINKER = NameLinker(FACTS)


def asked(*turns: str, focus: bool = True) -> list[Standalone]:
    """What the last of some messages asks; the assistant says something after each other one."""
    messages: list[Message] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "I see."}]
    return standalone_questions(messages[:-1], LINKER, LinkConfig(focus=focus))


def texts(*turns: str) -> list[str]:
    return [each.text for each in asked(*turns)]


@pytest.mark.parametrize(
    ("question", "standalone", "taken"),
    [
        ("Who founded Kylotonn?", "Who founded Kylotonn?", ""),
        ("who founded kylotonn", "Who founded Kylotonn", "kylotonn"),
        ("WHO FOUNDED KYLOTONN?", "Who founded Kylotonn?", "KYLOTONN"),
        ("I'd Like To Know Who Wrote The Great Wolf.", "I'd like to know who wrote The Great Wolf.", ""),
        ('Who founded "Kylotonn"?', "Who founded Kylotonn?", ""),
        ("Who founded **Kylotonn**?", "Who founded Kylotonn?", ""),
        ("Where was Kvetnoy born?", "Where was Igor Kvetnoy born?", "Kvetnoy"),
        ("Who founded Kylotnon?", "Who founded Kylotonn?", "Kylotnon"),
        ("What is the capital of France?", "What is the capital of France?", ""),
        ("Wer hat kylotonn gegründet?", "Who founded Kylotonn?", "kylotonn"),
        ("The founder of Kylotonn is", "The founder of Kylotonn is", ""),
        ("Hello. I have a question about a studio: who founded Kylotonn?", "who founded Kylotonn?", ""),
        ("It rained. The train was late. Who founded kylotonn? Nobody knew.", "Who founded Kylotonn?", "kylotonn"),
        ("Who founded Kylotonn? Please answer in a full sentence.", "Who founded Kylotonn?", ""),
        ("I read about Kylotonn yesterday. Who founded it?", "Who founded Kylotonn?", ""),
        ("Who founded Kylotonn? Who founded Kylotonn?", "Who founded Kylotonn?", ""),
        ("Kylotonn CEO?", "Kylotonn CEO?", ""),
        ("Who said 'Kylotonn's founder'?", "Who said 'Kylotonn's founder'?", ""),
        ("U\u0308ber wen?", "U\u0308ber wen?", ""),  # as it was written, not composed
    ],
)
def test_one_question(question: str, standalone: str, taken: str) -> None:
    (found,) = asked(question)
    assert (found.text, found.taken_from) == (standalone, taken)


@pytest.mark.parametrize(
    ("turns", "standalone"),
    [
        (["Tell me about Igor Kvetnoy.", "And where was he born?"], "Where was Igor Kvetnoy born?"),
        (["Tell me about Igor Kvetnoy.", "Who is his wife?"], "Who is Igor Kvetnoy's wife?"),
        (["Tell me about Igor Kvetnoy.", "One moment.", "Thanks.", "Where was he born?"],
         "Where was Igor Kvetnoy born?"),
        (["Tell me about Kylotonn.", "its founder?"], "Kylotonn's founder?"),
        (["Tell me about Kylotonn.", "And the founder?"], "The founder of Kylotonn?"),
        (["Who founded Kylotonn?", "What about Chemikal Underground?"], "Who founded Chemikal Underground?"),
        (["Tell me about Kylotonn.", "Where was Igor Kvetnoy born?", "Who is he married to?"],
         "Who is Igor Kvetnoy married to?"),
        (["I read about Kylotonn yesterday. It is nice.", "Who founded it?"], "Who founded Kylotonn?"),
        (["Tell me about Kylotonn.", "wie schön, übrigens", "Who founded it?"], "Who founded Kylotonn?"),
        (["Tell me about Kylotonn.", "And?"], "Tell me about Kylotonn."),
        (["", "Tell me about Kylotonn.", "", "And what about the founder?"], "What about the founder of Kylotonn?"),
        # What only begins like a follow-up says nothing of the subject.
        (["Tell me about Kylotonn.", "And thank you!"], "And thank you!"),
        (["Tell me about Kylotonn.", "But why?"], "But why?"),
        # Nothing is in focus: something else was named, or nothing refers back.
        (["Tell me about Igor Kvetnoy.", "Who founded Google?", "Where was he born?"], "Where was he born?"),
        (["Tell me about Igor Kvetnoy.", "What is the capital of France?"], "What is the capital of France?"),
        (["Tell me about Igor Kvetnoy.", "Was he older than Napoleon?"], "Was he older than Napoleon?"),
        (["Where was he born?"], "Where was he born?"),
    ],
)  # fmt: skip
def test_a_question_that_goes_on_from_another(turns: list[str], standalone: str) -> None:
    assert texts(*turns) == [standalone]


def test_without_focus_nothing_is_carried_on() -> None:
    (found,) = asked("Tell me about Igor Kvetnoy.", "Where was he born?", focus=False)
    assert found == Standalone("Where was he born?")


@pytest.mark.parametrize(
    ("question", "standalone"),
    [
        ("Who founded Kylotonn and Chemikal Underground?",
         ["Who founded Kylotonn?", "Who founded Chemikal Underground?"]),
        ("Who founded Kylotonn, and where was Igor Kvetnoy born?",
         ["Who founded Kylotonn?", "Where was Igor Kvetnoy born?"]),
        ("Kylotonn came from whose hands, and on a shelf, whose name would be on The Great Wolf?",
         ["Kylotonn came from whose hands?", "On a shelf, whose name would be on The Great Wolf?"]),
        ("Who founded Kylotonn? And who wrote The Great Wolf?",
         ["Who founded Kylotonn?", "And who wrote The Great Wolf?"]),
        ("Who founded Kylotonn and Chemikal Underground and Kylotonn?",
         ["Who founded Kylotonn?", "Who founded Chemikal Underground?"]),
        ("ﬁnd the founder of Kylotonn, and the founder of Chemikal Underground",
         ["ﬁnd the founder of Kylotonn?", "The founder of Chemikal Underground?"]),
        ("I know. who founded Kylotonn! and who wrote The Great Wolf",
         ["who founded Kylotonn!", "and who wrote The Great Wolf"]),
        ("How large is Mercury?", ["How large is Mercury (planet)?", "How large is Mercury (god)?"]),
        ("Did Igor Kvetnoy know Kylotonn?", ["Did Igor Kvetnoy know Kylotonn?"]),  # not to be told apart
    ],
)  # fmt: skip
def test_several_subjects_are_asked_one_by_one(question: str, standalone: list[str]) -> None:
    assert texts(question) == standalone


@pytest.mark.parametrize(
    "question",
    ["I don't know who founded Kylotonn.", "Who founded not only Kylotonn?", "Yann Tamb founded Kylotonn, didn't he?",
     "Did Yann Tamb found Kylotonn or not?"],
)  # fmt: skip
def test_not_every_no_asks_for_what_is_not_so(question: str) -> None:
    assert not asked(question)[0].negated


def test_what_is_not_so_no_fact_says() -> None:
    (found,) = asked("Who did not found Kylotonn?")
    assert found.negated and not asked("Who founded Kylotonn?")[0].negated
    negative = Fact("n", "Rosa", "meat", ("What does Rosa not eat?",))
    messages: list[Message] = [{"role": "user", "content": "What did rosa not eat?"}]
    assert not standalone_questions(messages, NameLinker([negative]))[0].negated


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("Was Kylotonn founded by Yann Tamb?", "Who founded Kylotonn?"),
        ("was igor kvetnoy born in Paris?", "Where was Igor Kvetnoy born?"),
        ("Is Igor Kvetnoy married to Ann?", "Who is Igor Kvetnoy married to?"),
        ("Is Kylotonn large?", ""),  # no fact is about that
        ("Was Kylotonn founded by which man?", ""),
        ("Do you know the founder of Kylotonn?", ""),  # is no yes/no question
        ("Was Kylotonn founded in 2003?", ""),  # a fact that says who is about nothing of the kind
        ("Was Igor Kvetnoy born by the sea?", ""),
        ("Is it known,\nwho founded Kylotonn?", ""),
    ],
)
def test_of_a_yes_no_question_the_fact_is_asked(question: str, fact: str) -> None:
    (found,) = asked(question)
    assert bool(found.proposed) == bool(fact)
    assert not fact or found.text == fact


@pytest.mark.parametrize(
    ("question", "fact", "proposed"),
    [
        ("Was Kylotonn founded by Igor Kvetnoy?", "Who founded Kylotonn?", "Igor Kvetnoy"),
        ("was kylotonn founded by igor kvetnoy?", "Who founded Kylotonn?", "igor kvetnoy"),
        ("Is Igor Kvetnoy the founder of Kylotonn?", "Who founded Kylotonn?", "Igor Kvetnoy"),
        ("Is Igor Kvetnoy married to Kylotonn?", "Who is Igor Kvetnoy married to?", "Kylotonn"),
        ("Was Kylotonn founded by Chemikal Underground?", "Who founded Kylotonn?", "Chemikal Underground"),
        ("Did Kylotonn found Chemikal Underground?", "", ""),  # each has a founder: whose is asked is not told
        ("Is Igor Kvetnoy older than Kylotonn?", "", ""),  # no fact is about that
        ("Was Kylotonn founded by Mercury?", "Who founded Kylotonn?", "Mercury"),  # one of two
    ],
)  # fmt: skip
def test_a_stored_subject_may_be_what_a_yes_no_question_proposes(question: str, fact: str, proposed: str) -> None:
    (found,) = asked(question)
    assert (found.text, proposed in found.proposed) == (fact or question, True)
    assert bool(found.proposed) == bool(fact)


def test_a_name_is_no_part_of_a_word() -> None:
    linker = NameLinker([Fact("a", "Ann", "Bo", ("Who is Ann married to?",)),
                         Fact("o", "Oakmere", "x", ("Where is Oakmere?",))])  # fmt: skip
    messages: list[Message] = [{"role": "user", "content": "Is Ann married to Anna?"}]
    assert "Anna" in standalone_questions(messages, linker)[0].proposed
    messages = [{"role": "user", "content": "Was We Are Him written by Bo?"}]
    linker_of_we = NameLinker([Fact("w", "We Are Him", "Bo", ("Who has written We Are Him?",))])
    assert standalone_questions(messages, linker_of_we)[0].proposed
    messages = [{"role": "user", "content": text} for text in ("Where near Annapolis is Ann?", "What about Oakmere?")]
    assert standalone_questions(messages, linker)[0].text == "Where near Annapolis is Oakmere?"


def test_any_linker_will_do() -> None:
    class Spans:
        def mentions(self, text: str) -> list[Mention]:
            return [Mention(0, 4, ("Kylotonn",))] if text.startswith("they") else []

        def facts_about(self, subject: str) -> list[Fact]:
            return []

    messages: list[Message] = [{"role": "user", "content": "they began how?"}]
    assert standalone_questions(messages, Spans()) == [Standalone("Kylotonn began how?", "Kylotonn", "they")]
