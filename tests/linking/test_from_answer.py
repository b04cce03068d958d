"""Questions about a stored answer, which ask for the subject."""

from __future__ import annotations

import pytest

from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.linking.answer_index import AnswerLinker
from memlayers.linking.linker import Mention, NameLinker
from memlayers.linking.roles import SLOT, asks_for_subject, stem
from memlayers.linking.standalone import MOST_SUBJECTS, Standalone, standalone_questions

FACTS = [
    Fact("a", "Kylotonn", "Yann Tamb", ("Who founded Kylotonn?",), "founder", aliases=("Jean Tamb",)),
    Fact("b", "Igor Kvetnoy", "Leeds", ("Where was Igor Kvetnoy born?",), "place of birth"),
    Fact("c", "Rosa Quill", "Leeds", ("Where was Rosa Quill born?",), "place of birth"),
    Fact("d", "Igor Kvetnoy", "Ann Berg", ("Who is Igor Kvetnoy married to?",), "spouse"),
    Fact("e", "Café Lumen", "Ada Stone", ("Who is the owner of Café Lumen?",), "owner"),
    Fact("f", "Veloria", "Tarn", ("What is the capital of Veloria?",), "capital"),
    Fact("g", "Jon Pell", "France", ("Which country is Jon Pell a citizen of?",), "country of citizenship"),
    Fact("h", "Lamp X", "10 EUR", ("What does Lamp X cost?", "What is the price of Lamp X?"), "price"),
    Fact("i", "Novacosm", "jazz", ("What kind of music does Novacosm play?",), "genre"),
    Fact("j", "Acme", "Oslo", ("In which city is Acme headquartered?",), "headquarters"),
    Fact("k", "Mill Inn", "Igor Kvetnoy", ("Who runs Mill Inn?",), "landlord"),
    Fact("o", "Wascana", "Germany", ("Wascana belongs to which district?",), "district"),
    Fact("l", "Bolt", "EMI", ("Who sponsors Bolt?",), "sponsor"),
    Fact("m", "Bolt", "yes", ("Is Bolt waterproof?",), "waterproof"),
    Fact("n", "Tom Ash", "Nina Ash", ("Name a child of Tom Ash.", "Tom Ash is the parent of whom?"), "child"),
]
LINKER = NameLinker(FACTS)


def asked(question: str, linker: NameLinker = LINKER) -> list[Standalone]:
    return standalone_questions([{"role": "user", "content": question}], linker)


@pytest.mark.parametrize(
    ("subjects", "questions"),
    [
        (["Kylotonn"], [
            "What did Yann Tamb found?", "what did yann tamb found", "WHAT DID YANN TAMB FOUND?",
            "Which video game company was founded by Yann Tamb?", "What is the company that Yann Tamb founded?",
            "Could you tell me what Yann Tamb founded?", "Yann Tamb is the founder of which company?",
            "What is Yann Tamb the founder of?", "What did **Jean Tamb** found?", "Hello! What has Yann Tamb founded?",
        ]),
        (["Igor Kvetnoy", "Rosa Quill"], ["Who was born in Leeds?", "Whose place of birth is Leeds?"]),
        (["Igor Kvetnoy"], ["Who married Ann Berg?", "Who is Ann Berg married to?", "Whose spouse is Ann Berg?"]),
        (["Café Lumen"], ["What does Ada Stone own?", "Which cafés are owned by Ada Stone?"]),
        (["Veloria"], ["What is Tarn the capital of?", "Which land has Tarn as its capital?"]),
        (["Jon Pell"], ["Who is a citizen of France?"]),
        (["Lamp X"], ["What costs 10 EUR?", "Which product has a price of 10 EUR?"]),
        (["Novacosm"], ["Which band plays jazz?"]),
        (["Acme"], ["Which company has its headquarters in Oslo?"]),
        (["Mill Inn"], ["Which inn does Igor Kvetnoy run?"]),  # a subject, of whom no fact says what is asked
        (["Tom Ash"], ["Who is the parent of Nina Ash?"]),
    ],
)  # fmt: skip
def test_a_question_about_an_answer_is_asked_of_its_subjects(subjects: list[str], questions: list[str]) -> None:
    for question in questions:
        found = asked(question)
        assert [each.subject for each in found] == subjects, question
        for each in found:
            facts = [fact for fact in LINKER.facts_about(each.subject) if each.text in fact.questions]
            assert each.from_answer is not None and [fact.answers for fact in facts] == [each.from_answer.answers]


@pytest.mark.parametrize(
    "questions",
    [
        ("Who founded Yann Tamb?", "Who is the founder of Yann Tamb?", "What is the capital of Tarn?",  # its own
         "Who owns Ada Stone?", "What is the price of 10 EUR?", "Who is Nina Ash's child?",
         "What music does jazz play?"),
        ("When was Ada Stone born?", "What is the capital of France?", "Who died in Leeds?", "What does Leeds own?",
         "What did Yann Tamb find?", "Who was founded in Leeds?",
         "Which domain belongs to Germany?"),  # another relation
        ("Who was born near Leeds?", "Who was born in Leeds in 1990?", "Who studied at the University of Leeds?",
         "Who was born in Leeds City?", "Which company did Yann Tamb found with Ada Stone?"),  # something more
        ("When did Yann Tamb found it?", "How many companies did Yann Tamb found?", "What else did Yann Tamb found?",
         "Did Yann Tamb found a company?", "What did he found with Yann Tamb?", "What did Yann Tamb not found?"),
        ("Yann Tamb founded a company.", "People who were born in Leeds are nice.", "Tell me about Leeds.", "jazz?"),
        ("what does emi sponsor?", "What is waterproof, yes?",
         "Which product has a price of 10 eur?"),  # written otherwise
        ("Where was Igor Kvetnoy born?", "Who is Igor Kvetnoy?", "Who runs Igor Kvetnoy?"),
    ],
)  # fmt: skip
def test_whatever_else_is_asked_is_left_alone(questions: tuple[str, ...]) -> None:
    for question in questions:
        assert all(each.from_answer is None for each in asked(question)), question


def test_of_many_subjects_some_are_asked() -> None:
    many = [Fact(f"{i}", f"Person Nr{i}", "Leeds", (f"Where was Person Nr{i} born?",)) for i in range(13)]
    found = asked("Who was born in Leeds?", NameLinker(many))
    assert [each.subject for each in found] == [fact.subject for fact in many[:MOST_SUBJECTS]]
    assert {each.from_answer.further for each in found if each.from_answer} == {13 - MOST_SUBJECTS}


def test_what_stays_in_focus() -> None:
    def last(*turns: str) -> str:
        talk: list[Message] = [{"role": "user", "content": turn} for turn in turns]
        return standalone_questions(talk, LINKER)[-1].text

    assert last("Tell me about Acme.", "what did yann tamb found?", "Where is it based?") == "Where is it based?"
    assert last("Which inn does Igor Kvetnoy run?", "Where was he born?") == "Where was Igor Kvetnoy born?"


def test_a_linker_that_finds_no_answers_goes_on_working() -> None:
    class Plain:
        def mentions(self, text: str) -> list[Mention]:
            return []

        def facts_about(self, subject: str) -> list[Fact]:
            return []

    assert isinstance(LINKER, AnswerLinker) and not isinstance(Plain(), AnswerLinker)
    question = "What did Yann Tamb found?"
    assert standalone_questions([{"role": "user", "content": question}], Plain()) == [Standalone(question)]


def test_the_nearest_wording_tells_the_direction() -> None:
    wordings = [f"Which country is {SLOT} a citizen of?", f"What is the country of citizenship of {SLOT}?"]
    assert asks_for_subject(f"Who is a citizen of {SLOT}?", wordings, "country of citizenship")
    assert not asks_for_subject(f"What is the country of citizenship of {SLOT}?", wordings, "country of citizenship")
    families = "own owns owner owned ownership|found founded founder founding|born birth birthplace|die died death"
    for family in families.split("|"):
        assert len({stem(word) for word in family.split()}) == 1
    assert stem("find") != stem("found")
