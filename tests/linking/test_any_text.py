"""Whatever people write: names of every shape, any text, and texts that are long."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.linking.linker import NameLinker
from memlayers.linking.standalone import Standalone, standalone_questions

NAMES = (
    "Kylotonn", "Igor Kvetnoy", "The Who", "It", "Her", "Will", "Not", "And Then There Were None", "Never Let Me Go",
    "1984", "7", "X", "!!!", "Yahoo! Briefcase", "Surprise! Surprise!", "Einstein Bros. Bagels", "Shout!",
    "Pamela; or, Virtue Rewarded", "Who's Afraid: Of It?", "R&B Café", "O'Neil's", "Tell Me", "The Record", "A Song",
    "As One", "Of A Trio", "L'Arena", "Maurizio Arena", "Liberation", "Libération", "Pandemonium", "Pandemonium!",
    "Self Portrait", "Self-Portrait", "C++ 11", "C# 11", "漢字公司", "مكتبة النور", "İstanbul Işık", "Straße",
    "Cafe\u0301 Lumen", "ﬁnder", "Ⅷ House", "Ａｃｍｅ Wide", "Line\nBreak", "is", "😀", "Mr. Big", "Acme, Inc.",
    "Parisa",
)  # fmt: skip
FACTS = [Fact(name, name, "an answer", (f"Who founded {name}?", f"Name the label of {name}.")) for name in NAMES] + [
    Fact("born", "Maurizio Arena", "Rome", ("Where was Maurizio Arena born?",))
]
LINKER = NameLinker(FACTS, ordinary={"will", "Paris", "record"}.__contains__)


def asked(*turns: str) -> list[Standalone]:
    messages: list[Message] = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "I see."}]
    return standalone_questions(messages[:-1], LINKER)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "frame", ["Who founded {}?", "{} was founded by whom?", "Could you tell me where {} lies?", "Who is {}'s owner?"]
)
def test_a_name_as_it_is_stored_changes_nothing(name: str, frame: str) -> None:
    question = frame.format(name)
    (found,) = asked(question)
    assert unicodedata.normalize("NFC", found.text) == unicodedata.normalize("NFC", question)
    assert (found.taken_from, found.negated, found.proposed) == ("", False, "")
    assert found.subject in (name, "")
    assert found.subject or not any(letter.islower() for letter in name) or len(name.split()) == 1


_PIECES = st.one_of(
    st.sampled_from(NAMES), st.sampled_from([name.lower() for name in NAMES]),
    st.sampled_from(["who founded", "and", "it", "her", "What about", "not", "Is"]),
    st.sampled_from([".", "?", "!", "\n", '"', "**", "’"]),
    st.text(max_size=6),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(" ".join, st.lists(_PIECES, max_size=8)), min_size=1, max_size=3))
def test_no_text_fails_and_places_are_in_it(turns: list[str]) -> None:
    assert asked(*turns)
    text = unicodedata.normalize("NFC", turns[-1])
    end = 0
    for mention in LINKER.mentions(text):
        assert end <= mention.start < mention.end <= len(text) and mention.subjects
        end = mention.end


@given(st.text(alphabet=st.characters(exclude_characters="0123456789"), max_size=80))
def test_a_text_without_stored_names_is_asked_as_it_is(text: str) -> None:
    alone = NameLinker([Fact("a", "Kylotonnopolis", "b", ("Who founded Kylotonnopolis?",))])
    assert standalone_questions([{"role": "user", "content": text}], alone) == [Standalone(text)]


@pytest.mark.parametrize(
    "piece",
    ["lorem Ipsum ", "It rained today. ", "Who founded Kylotonn? ", "Kylotonn ", "Kylotonn and ", "Kylotonn, ", '"',
     " ", "\n,", "sofor", "and ", "Is it Kylotonn ", "n't ", "漢字", "mmm "],
)  # fmt: skip
def test_work_grows_with_the_length_alone(piece: str) -> None:
    """Counted in calls; a regular expression that tries ever more ways would not come to an end."""

    def calls(size: int) -> int:
        text = "What about Kylotonn " + piece * (size // len(piece)) + " and Igor Kvetnoy?"
        counted = 0

        def count(*_: object) -> None:
            nonlocal counted
            counted += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            asked("Who founded Kylotonn?", text)
        finally:
            sys.setprofile(before)
        return counted

    assert calls(16_000) < 1_000 + 6 * calls(4_000)  # 16 times where it is quadratic
