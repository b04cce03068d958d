from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.openai_server import Body, OpenAIServer, answer_of, writes_well
from memlayers.data.fact_files import facts_text
from memlayers.sources.claims import Extraction
from memlayers.sources.documents import Document
from memlayers.sources.writer import NONSENSE, NOT_QUOTED, SAYS_NOTHING, from_writer
from memlayers.sources.writer_answers import Answers, Usage
from memlayers.sources.writer_client import BackboneWriter, OpenAIWriter
from memlayers.utils.errors import InputError, WorkError

LAMP = Document(
    "lamp.md", "# Lamps\n\nThe price of Aerolamp is 30 pounds. The manufacturer of Aerolamp is Brindle Works. Ah.\n"
)
WORKS = Document("works.md", "# Works\n\nThe manager of Brindle Works is Harriet Oake.\n")
LONG = Document("long.md", "\n\n".join(f"The price of Lamp {i} is {i} pounds. {'It shines. ' * 90}" for i in range(6)))
AERO = {
    "subject": "Aerolamp",
    "relation": "price",
    "answer": "30 pounds",
    "evidence": "The price of Aerolamp is 30 pounds.",
}
FACTS, WORDINGS, JOINED = "List every fact", "For each fact", "Each entry"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[OpenAIServer, OpenAIWriter]]:
    with OpenAIServer(writes_well) as server:
        yield server, OpenAIWriter(server.address, "small", seconds=10, tries_again=0)


@pytest.fixture
def server(running: tuple[OpenAIServer, OpenAIWriter]) -> OpenAIServer:
    running[0].begin(writes_well)
    return running[0]


@pytest.fixture
def answers(server: OpenAIServer, running: tuple[OpenAIServer, OpenAIWriter], tmp_path: Path) -> Callable[..., Answers]:
    """The answers of the server's model, as a new run begins with them."""

    def made(folder: str = "answers", **options: int) -> Answers:
        return Answers(running[1], tmp_path / folder, **options)

    return made


def asked(server: OpenAIServer, task: str) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.asked if body["messages"][0]["content"].startswith(task)]


def answering(task: str, *items: Body | str) -> Callable[[Body], str]:
    """Answers one kind of request with these items, or texts, in turn (the last one again and again), others well."""
    left = list(items)

    def answer(body: Body) -> str:
        if not body["messages"][0]["content"].startswith(task):
            return writes_well(body)
        item = left.pop(0) if len(left) > 1 else left[0]
        return item if isinstance(item, str) else answer_of([item])

    return answer


def reasons(found: Extraction) -> list[str]:
    return [each.why for each in found.left_out if each.why != SAYS_NOTHING]


def test_facts_with_evidence_and_wordings(answers: Callable[..., Answers]):
    found = from_writer([LAMP], answers(), quiet=True)
    price, maker, *rest = found.facts
    assert (price.subject, price.answer, price.relation) == ("Aerolamp", "30 pounds", "price")
    assert (price.id, maker.id) == ("aerolamp.price", "aerolamp.manufacturer")
    assert len(price.questions) == 10 and price.questions[0] == "Question 0: the price of Aerolamp?"
    assert price.unseen_questions == tuple(f"Question {i}: the price of Aerolamp?" for i in (10, 11, 12))
    [source] = price.sources
    assert source.evidence == LAMP.text[source.start : source.end] == "The price of Aerolamp is 30 pounds."
    assert [each.evidence for each in found.passages] == [price.sources[0].evidence, maker.sources[0].evidence, "Ah."]
    assert [(each.source.evidence, each.why) for each in found.left_out] == [("Ah.", SAYS_NOTHING)]
    assert facts_text("f.jsonl", found.facts)


def test_a_name_is_asked_for_the_other_way_round_too_but_no_number(answers: Callable[..., Answers]):
    turned = [each for each in from_writer([LAMP], answers(), quiet=True).facts if each.id.endswith(".reversed")]
    [maker] = turned
    assert (maker.subject, maker.answer, maker.relation) == ("Brindle Works", "Aerolamp", "manufacturer (reversed)")
    assert len(maker.questions) >= 10 and len(maker.unseen_questions) >= 3
    assert all("Brindle Works" in each and "Aerolamp" not in each for each in maker.questions + maker.unseen_questions)
    assert "Aerolamp" in maker.sources[0].evidence


def test_a_name_that_several_have_is_not_asked_back(answers: Callable[..., Answers]):
    text = "The manufacturer of Aerolamp is Brindle Works. The manufacturer of Sealamp is Brindle Works."
    assert len(from_writer([Document("a.md", text)], answers(), quiet=True).facts) == 2
    text = "The manufacturer of Oake is Harriet Oake."
    assert len(from_writer([Document("a.md", text)], answers(), quiet=True).facts) == 1


def test_questions_join_the_facts_of_two_documents_but_not_of_one(
    answers: Callable[..., Answers], server: OpenAIServer
):
    found = from_writer([LAMP, WORKS], answers(), quiet=True)
    joined = {each.id: each for each in found.facts if "(joined)" in each.relation}
    manager = joined["aerolamp.manufacturer+brindle-works.manager"]
    assert (manager.subject, manager.answer, manager.relation) == ("Aerolamp", "Harriet Oake", "manager (joined)")
    assert [each.document for each in manager.sources] == ["works.md", "lamp.md"]
    assert manager.questions[0] == "0: the manager of the manufacturer of Aerolamp?"
    for fact in joined.values():
        assert len(fact.questions) >= 10 and len(fact.unseen_questions) >= 3
        assert len({each.document for each in fact.sources}) == 2
        for text in fact.questions + fact.unseen_questions:
            assert fact.subject in text and fact.answer not in text and "Brindle Works" not in text
    assert facts_text("f.jsonl", found.facts)
    server.asked.clear()
    both = Document("both.md", LAMP.text + WORKS.text)
    assert not any("(joined)" in each.relation for each in from_writer([both], answers(), quiet=True).facts)
    assert not asked(server, JOINED)


def test_one_fact_of_two_documents_has_both_sources_and_two_values_are_left_out(answers: Callable[..., Answers]):
    same = Document("again.md", "The price of Aerolamp is 30 pounds.")
    found = from_writer([LAMP, same], answers(), quiet=True)
    assert [each.document for each in found.facts[0].sources] == ["lamp.md", "again.md"]
    other = Document("other.md", "The price of Aerolamp is 31 pounds.")
    found = from_writer([LAMP, other], answers(), quiet=True)
    assert not [each for each in found.facts if each.relation == "price"]
    assert {each.source.document for each in found.left_out if each.why != SAYS_NOTHING} == {"lamp.md", "other.md"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"evidence": "The price of Aerolamp is about 30 pounds."}, NOT_QUOTED),
        ({"evidence": "the price of Aerolamp is 30 pounds."}, NOT_QUOTED),
        ({"answer": "40 pounds"}, "answer not in its evidence"),
        ({"answer": "3"}, "answer not in its evidence"),
        ({"answer": "The price of Aerolamp is 30 pounds."}, "answer is the whole sentence"),
        ({"subject": "Sealamp"}, "subject not in the document"),
        ({"answer": "Aerolamp"}, "answer within its subject"),
        ({"answer": " "}, "a field that is empty, or no text"),
        ({"relation": None}, "a field that is empty, or no text"),
        ({"relation": "price " * 100}, "a subject or relation too long"),
        ({"answer": "30 pounds. The manufacturer", "evidence": LAMP.text[9:].strip()}, "answer not within one passage"),
    ],
)
def test_a_fact_that_the_text_does_not_bear_out_never_passes(
    change: Body, why: str, answers: Callable[..., Answers], server: OpenAIServer
):
    server.answer = answering(FACTS, AERO | change)
    found = from_writer([LAMP], answers(), quiet=True)
    assert found.facts == [] and reasons(found) == [why]
    assert len(asked(server, FACTS)) == 2 and why in asked(server, FACTS)[1]  # it was told, and could have mended it


def test_a_long_answer_is_left_out(answers: Callable[..., Answers]):
    found = from_writer([LAMP], answers(), most_words=1, quiet=True)
    assert found.facts == [] and reasons(found) == ["too long for an answer"] * 2


def test_what_is_mended_passes(answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = answering(FACTS, AERO | {"answer": "40 pounds"}, AERO)
    found = from_writer([LAMP], answers(), quiet=True)
    assert [each.answer for each in found.facts] == ["30 pounds"] and not reasons(found)


def test_spacing_and_marks_are_the_documents(answers: Callable[..., Answers], server: OpenAIServer):
    document = Document("d.md", "The price of **Aerolamp** is  “30\t pounds”.")
    server.answer = answering(FACTS, AERO | {"evidence": 'The price of Aerolamp is "30 pounds".'})
    [fact] = from_writer([document], answers(), quiet=True).facts
    assert fact.sources[0].evidence == document.text and fact.answer == "30 pounds"


def test_the_evidence_of_a_tables_row_is_the_cell(answers: Callable[..., Answers], server: OpenAIServer):
    row = "| Aerolamp | 30 pounds |"
    server.answer = answering(FACTS, AERO | {"evidence": row})
    [fact] = from_writer([Document("d.md", f"| lamp | price |\n|---|---|\n{row}\n")], answers(), quiet=True).facts
    assert fact.sources[0].evidence == "30 pounds"


def test_a_subject_may_be_given_that_the_document_does_not_name(answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = answering(FACTS, {"subject": "Oake Ltd", "relation": "price", "answer": "30 pounds",
                                      "evidence": "It costs 30 pounds."})  # fmt: skip
    [fact] = from_writer([Document("d.md", "It costs 30 pounds.")], answers(), subject="Oake Ltd", quiet=True).facts
    assert fact.subject == "Oake Ltd"
    assert asked(server, FACTS)[0].startswith("Headings: Oake Ltd\n")


@pytest.mark.parametrize(
    "said",
    [
        "```json\n{}\n```",
        "Here you are:\n```\n{}\n```\nAnything else?",
        '<think>{{"facts": []}}</think>{}',
        "{}",
    ],
)
def test_json_may_stand_in_other_text(said: str, answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = answering(FACTS, said.format(answer_of([AERO])))
    assert len(from_writer([LAMP], answers(), quiet=True).facts) == 1


def test_half_characters_are_left_out(answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = lambda body: writes_well(body).replace("Question", r"Quest\ud83dion") + "\ud83d"
    fact = from_writer([LAMP], answers(), quiet=True).facts[0]
    assert fact.questions[0] == "Question 0: the price of Aerolamp?"


def test_of_an_answer_that_is_cut_off_the_whole_items_count(answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = answering(FACTS, answer_of([AERO, AERO])[:-30])
    assert len(from_writer([LAMP], answers(), quiet=True).facts) == 1


@pytest.mark.parametrize(
    "nonsense", ["", "I am sorry.", "[1, 2]", '{"fact": 1}', '{"facts": 3}', "{" * 3000, '{"a":' * 3000]
)
def test_a_writer_of_nonsense_is_told_in_one_line(nonsense: str, answers: Callable[..., Answers], server: OpenAIServer):
    server.answer = lambda body: nonsense
    with pytest.raises(WorkError, match="'small' answered nonsense, no JSON with facts, to all 2 chunks"):
        from_writer([LAMP, WORKS], answers(), quiet=True)
    assert len(server.asked) == 2 * 3


def test_a_chunk_with_nonsense_is_left_out_and_asked_for_again_by_the_next_run(
    answers: Callable[..., Answers], server: OpenAIServer
):
    server.answer = lambda body: "Hm." if "Brindle Works is" in str(body) else writes_well(body)
    found = from_writer([LAMP, WORKS], answers(), quiet=True)
    assert {each.sources[0].document for each in found.facts} == {"lamp.md"}
    assert [(each.source.document, each.why) for each in found.left_out] == [
        ("works.md", NONSENSE),
        ("lamp.md", SAYS_NOTHING),
    ]
    server.asked.clear()
    server.answer = writes_well
    assert "works.md" in {each.sources[0].document for each in from_writer([LAMP, WORKS], answers(), quiet=True).facts}
    assert len(asked(server, FACTS)) == 1


@pytest.mark.parametrize(
    "wordings",
    [
        {"number": 1, "questions": [], "reversed": []},
        {"number": 7, "questions": ["What is the price of Aerolamp?"], "reversed": []},
        {"number": 1, "questions": ["Is the price of Aerolamp 30 pounds?", "What does it cost?", "", 5, "x" * 400]},
        {"number": 1, "questions": "What is the price of Aerolamp?", "reversed": "no"},
        {"number": 1, "questions": ["What does the Aerolamp cost?"] * 13},
        "no idea",
    ],
)
def test_too_few_good_wordings_are_filled_up(
    wordings: Body | str, answers: Callable[..., Answers], server: OpenAIServer
):
    server.answer = answering(WORDINGS, wordings)
    fact = from_writer([LAMP], answers(), quiet=True).facts[0]
    every = fact.questions + fact.unseen_questions
    assert len(fact.questions) >= 10 and len(fact.unseen_questions) >= 3 and len(set(every)) == len(every)
    assert all("Aerolamp" in each and "30 pounds" not in each and "x" * 400 not in each for each in every)
    assert ("What does the Aerolamp cost?" in every) == ("cost?" in str(wordings) and "Aerolamp cost" in str(wordings))


def test_a_question_that_is_put_for_two_facts_asks_for_neither(answers: Callable[..., Answers], server: OpenAIServer):
    both = [{"number": i, "questions": ["What about Aerolamp?", f"Number {i} of Aerolamp?"]} for i in (1, 2)]
    server.answer = answering(WORDINGS, answer_of(both))
    found = from_writer([LAMP], answers(), quiet=True)
    assert all("What about Aerolamp?" not in each.questions for each in found.facts)
    assert "Number 1 of Aerolamp?" in found.facts[0].questions


def test_what_is_made_by_rule_asks_for_no_other_fact(answers: Callable[..., Answers], server: OpenAIServer):
    by_rule = from_writer([LAMP], answers(), quiet=True)
    server.answer = answering(WORDINGS, answer_of([]))
    library = from_writer([LAMP], answers("library"), quiet=True).facts[0]
    taken = [library.questions[0], library.unseen_questions[0]]  # of the price, put for the manufacturer
    server.answer = answering(WORDINGS, answer_of([{"number": 2, "questions": taken}]))
    price, maker = from_writer([LAMP], answers("taken"), quiet=True).facts
    assert set(taken) <= set(maker.questions) and not set(taken) & {*price.questions, *price.unseen_questions}
    assert by_rule.facts[0].questions != price.questions
    assert len(price.unseen_questions) == 3 <= 10 <= len(price.questions)


def test_a_second_run_costs_nothing_and_says_the_same(answers: Callable[..., Answers], server: OpenAIServer):
    first = answers()
    before = from_writer([LAMP, WORKS], first, quiet=True)
    sent = len(server.asked)
    assert first.usage == Usage(requests=sent, prompt_tokens=100 * sent, completion_tokens=10 * sent)
    assert first.usage.cost(2, 30) == pytest.approx(sent * (100 * 2 + 10 * 30) / 1_000_000)
    again = answers()
    server.lives_for = 0
    assert from_writer([LAMP, WORKS], again, quiet=True) == before
    assert again.usage == Usage(kept_requests=sent, kept_prompt_tokens=100 * sent, kept_completion_tokens=10 * sent)


def test_only_what_changed_is_sent(answers: Callable[..., Answers], server: OpenAIServer):
    from_writer([LONG], answers(), quiet=True)
    chunks = len(asked(server, FACTS))
    server.asked.clear()
    changed = Document("long.md", LONG.text.replace("Lamp 3 is 3 pounds", "Lamp 3 is 4 pounds"))
    assert "4 pounds" in {each.answer for each in from_writer([changed], answers(), quiet=True).facts}
    assert len(asked(server, FACTS)) == len(asked(server, WORDINGS)) == 1 < chunks


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"answers": 3}'])
def test_a_damaged_answer_is_asked_for_again(damage: str, answers: Callable[..., Answers], server: OpenAIServer):
    before = from_writer([LAMP], answers(), quiet=True)
    sent = len(server.asked)
    for path in answers().folder.iterdir():
        path.write_text(damage)
    assert from_writer([LAMP], answers(), quiet=True) == before and len(server.asked) == 2 * sent


def test_a_server_that_dies_leaves_what_it_answered(answers: Callable[..., Answers], server: OpenAIServer):
    server.lives_for = 2
    with pytest.raises(WorkError) as raised:
        from_writer([LONG], answers(workers=1), quiet=True)
    folder = answers().folder
    assert str(raised.value).endswith(f"2 of 6 chunks are kept in {folder}; the same command resumes")
    assert len(list(folder.iterdir())) == 2
    server.lives_for = None
    server.asked.clear()
    assert len(from_writer([LONG], answers(), quiet=True).facts) == 6
    assert len(asked(server, FACTS)) == 4


def test_a_key_that_stops_being_taken_leaves_what_was_answered(answers: Callable[..., Answers], server: OpenAIServer):
    def answer(body: Body) -> str:
        server.key = "another"
        return writes_well(body)

    server.answer = answer
    with pytest.raises(InputError, match="wants a key .* 1 of 6 chunks are kept"):
        from_writer([LONG], answers(workers=1), quiet=True)


def test_facts_come_in_the_documents_order_however_many_are_asked_at_once(
    answers: Callable[..., Answers],
):
    one = from_writer([LONG, LAMP], answers("one", workers=1), quiet=True)
    assert from_writer([LONG, LAMP], answers("many", workers=8), quiet=True) == one
    assert [each.answer for each in one.facts[:6]] == [f"{i} pounds" for i in range(6)]


def test_no_documents_no_facts(answers: Callable[..., Answers]):
    assert from_writer([], answers(), quiet=True) == Extraction()


def test_answers_are_kept_as_json_without_the_documents_text(answers: Callable[..., Answers]):
    from_writer([LAMP], answers(), quiet=True)
    rows = [json.loads(path.read_text()) for path in answers().folder.glob("*.json")]
    assert all(row["model"] == "small" and row["answers"] for row in rows)
    assert "shines" not in str(rows)


def test_a_small_backbone_writes_nonsense(tmp_path: Path):
    with pytest.raises((InputError, WorkError), match="name (another|one)"):
        from_writer([WORKS], Answers(BackboneWriter("pocket", most_tokens=8), tmp_path / "answers"), quiet=True)
