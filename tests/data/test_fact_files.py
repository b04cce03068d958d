from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlayers.data.fact_files import read_facts, read_facts_with_lines, read_questions, write_csv, write_facts
from memlayers.data.facts import Fact, Question, Source, alias_fault, check_facts
from memlayers.utils.errors import InputError

FULL = {
    "id": "fr",
    "subject": "France",
    "relation": "capital",
    "questions": ["What is the capital of France?", "France's capital?"],
    "unseen_questions": ["Name France's capital."],
    "answer": "Paris",
    "aliases": ["Paris, France"],
    "subject_aliases": ["the Hexagon"],
    "sources": [
        {"document": "atlas.pdf", "evidence": "Paris is the capital", "start": 7, "end": 27, "page": 2},
        {"document": "capitals.csv", "evidence": "Paris", "row": 12, "column": "capital"},
    ],
}
FACT = Fact(
    id="fr",
    subject="France",
    answer="Paris",
    questions=("What is the capital of France?", "France's capital?"),
    relation="capital",
    unseen_questions=("Name France's capital.",),
    aliases=("Paris, France",),
    subject_aliases=("the Hexagon",),
    sources=(
        Source("atlas.pdf", "Paris is the capital", start=7, end=27, page=2),
        Source("capitals.csv", "Paris", row=12, column="capital"),
    ),
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: object, name: str = "facts.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(content, (list, tuple)):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
        return path

    return write_file


def _error(path: Path, strict: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        read_facts(path, strict=strict)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_full_row(write: Write):
    assert read_facts(write([FULL])) == [FACT]
    assert FACT.answers == ("Paris", "Paris, France")
    assert [source.place for source in FACT.sources] == [
        "atlas.pdf, page 2, characters 7 to 27",
        "capitals.csv, row 12, column capital",
    ]


def test_question_rows_in_all_their_forms(write: Write):
    path = write(
        [
            {"question": "Capital of France?", "answers": ["Paris", "Paname"]},
            {
                "question": "Capital of Chad?",
                "answer": "N'Djamena",
                "subject": "Chad",
                "id": "td",
                "subject_aliases": ["Tchad"],
            },
            {"questions": ["a?", "b?"], "answers": ["c"], "unseen_questions": ["d?"]},
        ]
    )
    first, second, third = read_facts(path)
    assert (first.subject, first.answer, first.aliases) == ("", "Paris", ("Paname",))
    assert (second.id, second.subject, second.answers) == ("td", "Chad", ("N'Djamena",))
    assert second.subject_aliases == ("Tchad",) and second.aliases == first.subject_aliases == ()
    assert (third.questions, third.unseen_questions) == (("a?", "b?"), ("d?",))


def test_questions_of_fact_rows_and_question_rows(write: Write):
    path = write([FULL, {"question": "q?", "answers": ["a", "b"]}, {"question": "r?", "answer": "c"}])
    assert read_questions(path) == [
        Question("What is the capital of France?", ("Paris", "Paris, France")),
        Question("France's capital?", ("Paris", "Paris, France")),
        Question("q?", ("a", "b")),
        Question("r?", ("c",)),
    ]


def test_lines_are_counted_over_blank_ones_and_crlf(write: Write):
    text = "\n" + json.dumps(FULL) + "\r\n\r\n  \n" + json.dumps({"question": "q?", "answer": "a"})
    facts, lines = read_facts_with_lines(write(text))
    assert [fact.answer for fact in facts] == ["Paris", "a"]
    assert lines == [2, 5]


def test_a_json_list_keeps_its_line_numbers(write: Write):
    path = write(json.dumps([FULL, {"question": "q?", "answer": "a"}], indent=1), "facts.json")
    facts, lines = read_facts_with_lines(path)
    assert facts[0] == FACT and facts[1].answer == "a"
    text = path.read_text().split("\n")
    assert [text[line - 1].strip() for line in lines] == ["{", "{"]
    assert lines[1] > lines[0] == 2
    assert read_facts(write(json.dumps(FULL), "lines.json")) == [FACT]


def test_byte_order_mark_and_line_separators_inside_text(write: Write):
    row = {"question": "a\u2028b\x85c?", "answer": "d\n\u2029e"}
    path = write(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\n")
    (fact,) = read_facts(path)
    assert (fact.questions, fact.answer) == (("a\u2028b\x85c?",), "d\n\u2029e")


def test_hashed_ids_are_the_same_everywhere(write: Write):
    row = {"question": "Wo liegt Țolici?", "answer": "Rumänien"}
    (fact,) = read_facts(write([row]))
    assert fact.id == "ac0341526f50"
    assert read_facts(write([{**row, "relation": "country"}]))[0].id == fact.id
    assert read_facts(write([{**row, "answer": "Romania"}]))[0].id != fact.id
    code = "import sys; from memlayers.data.fact_files import read_facts; print(read_facts(sys.argv[1])[0].id)"
    command = [sys.executable, "-c", code, str(write([row]))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == fact.id


def test_a_row_said_twice_is_kept_for_the_check(write: Write):
    row = {"question": "q?", "answer": "a"}
    facts, lines = read_facts_with_lines(write([row, row, row]))
    assert len({fact.id for fact in facts}) == 3
    (clash,) = check_facts(facts, lines).duplicates
    assert clash.lines == (1, 2, 3)
    assert clash.ids[1:] == (f"{clash.ids[0]}-2", f"{clash.ids[0]}-3")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({**FULL, "questions": "one?"}, 'questions is a string; make it a list: "questions": ["..."]'),
        ({**FULL, "aliases": "one"}, "aliases is a string; make it a list"),
        ({**FULL, "questions": {"a": 1}}, "questions is an object, not a list"),
        ({**FULL, "questions": []}, "questions is an empty list"),
        ({**FULL, "questions": ["a?", 3]}, "questions[1] is a number, not a string"),
        ({**FULL, "questions": ["a?", " "]}, "questions[1] is empty"),
        ({**FULL, "answer": ["Paris"]}, "answer is a list, not a string"),
        ({**FULL, "answer": 7}, "answer is a number, not a string; put it in double quotes"),
        ({**FULL, "answer": ""}, "answer is empty"),
        ({**FULL, "subject": ""}, "subject is empty"),
        ({**FULL, "id": 7}, "id is a number"),
        ({**FULL, "relation": None}, "relation is null"),
        ({**FULL, "unseen_questions": [True]}, "unseen_questions[0] is true or false"),
        ({**FULL, "unseen_questions": FULL["questions"]}, "an unseen question is also among the taught ones"),
        ({**FULL, "subject_aliases": "one"}, "subject_aliases is a string; make it a list"),
        ({**FULL, "subject_aliases": ["a", ""]}, "subject_aliases[1] is empty"),
        ({**FULL, "subject_aliases": ["w " * 100]}, "subject_aliases[0]: 'w w "),
        ({**FULL, "subject_aliases": ["FRANCE"]}, "subject_aliases[0]: 'FRANCE' is the subject's own name"),
        (
            {"question": "q?", "answers": ["a"], "subject_aliases": ["b"]},
            "subject_aliases[0]: 'b' is an alias of no subject; give the fact its subject",
        ),
        ({**FULL, "sources": "atlas.pdf"}, "sources is a string, not a list"),
        ({**FULL, "sources": ["atlas.pdf"]}, "sources[0] is a string, not an object"),
        ({**FULL, "sources": [{"document": "a"}]}, "sources[0]: missing field 'evidence'; give document and evidence"),
        ({**FULL, "sources": [{"document": "a", "evidence": ""}]}, "sources[0].evidence is empty"),
        ({**FULL, "sources": [{"document": "a", "evidence": "b", "line": 3}]}, "sources[0]: unknown field 'line'"),
        ({**FULL, "sources": [{"document": "a", "evidence": "b", "row": "3"}]}, "sources[0].row is '3'; give a whole"),
        ({**FULL, "sources": [{"document": "a", "evidence": "b", "start": 3}]}, "has one of start and end; give both"),
        ({**FULL, "anwser": "x"}, "unknown field 'anwser'; known fields: id, subject, relation, questions,"),
        ({k: v for k, v in FULL.items() if k != "answer"}, "missing field 'answer'"),
        ({k: v for k, v in FULL.items() if k != "questions"}, "missing field 'questions'"),
        ({k: v for k, v in FULL.items() if k != "subject"}, "missing field 'subject'"),
        ({}, "missing field 'subject'; a fact needs subject, questions and answer"),
        ({"question": "q?"}, "missing field 'answers'"),
        ({"answers": ["a"]}, "missing field 'question'"),
        ({"question": "q?", "answers": "a"}, "answers is a string; make it a list"),
        ({"question": ["q?"], "answers": ["a"]}, "question is a list, not a string"),
        ({"question": "q?", "answers": []}, "answers is an empty list"),
        ({"question": "q?", "answer": "a", "answers": ["a"]}, "both 'answer' and 'answers'"),
        ({"question": "q?", "answers": ["\ud800"]}, "half of a surrogate pair"),
        (["q?", "a"], "the row is a list, not an object"),
        ("q?", "the row is a string, not an object"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_remedy(write: Write, row: object, complaint: str):
    good = {"question": "good?", "answer": "yes"}
    message = _error(write([good, row]))
    assert message.startswith(":2: ")
    assert complaint in message
    assert "; " in message  # what is wrong; how to repair it
    as_list = json.dumps([good, row], indent=None).replace(", {", ",\n{", 1)
    if isinstance(row, dict):
        assert _error(write(as_list, "facts.json")) == message


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ('{"question": "q?", "answer": "a"}\n{"question": ', 2, "malformed JSON"),
        ("[" * 100_000, 1, "malformed JSON"),
        ('{"question": ' + "9" * 5000 + "}", 1, "malformed JSON"),
        ('{"answer": "a", "answer": "b", "question": "q?"}', 1, "field 'answer' appears twice"),
        (b'{"question": "q?", "answer": "a"}\n\n{"question": "\xe9?"}', 3, "not UTF-8 (byte 0xe9)"),
        ('{"question": "q?", "answer": "a"}'.encode("utf-16"), 1, "not UTF-8 (byte 0xff)"),
        ('{"id": "x", "question": "q?", "answer": "a"}\n{"id": "x", "question": "r?", "answer": "a"}', 2,
         "id 'x' is already used on line 1"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_line(write: Write, text: object, line: int, complaint: str):
    message = _error(write(text))
    assert message.startswith(f":{line}: ") and complaint in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[\n{"question": "q?", "answer": "a"}\n{"question": "r?", "answer": "a"}]', 3),
        ('[\n{"question": "q?", "answer": "a"},\n\n{"question" "r?"}]', 4),
        ('[\n{"question": "q?", "answer": "a"}\n]\n\n[]', 5),
        ('[\n{"question": "q?", "answer": "a"},\n', 3),
        ('[\n{"question": "q?", "answer": "a"}\n', 3),
        ('[\n{"question": "q?", "answer": "a"},\n3]', 3),
    ],
)
def test_a_broken_json_list_is_named_with_its_line(write: Write, text: str, line: int):
    assert _error(write(text, "facts.json")).startswith(f":{line}: ")


@pytest.mark.parametrize("text", ["", "\n  \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.csv"])
def test_an_empty_file(write: Write, text: object, name: str):
    assert "the file is empty" in _error(write(text, name))


@pytest.mark.parametrize(("text", "name"), [("[]", "facts.json"), ("question,answer\n\n", "facts.csv")])
def test_a_file_without_rows(write: Write, text: str, name: str):
    assert "no rows" in _error(write(text, name))


def test_no_file_a_directory_and_an_unknown_suffix(tmp_path: Path, write: Write):
    assert "no such file" in _error(tmp_path / "nothing.jsonl")
    (tmp_path / "d.jsonl").mkdir()
    assert "is a directory" in _error(tmp_path / "d.jsonl")
    assert "unknown kind of file '.txt'; use .jsonl, .json or .csv" in _error(write("x", "facts.txt"))


def test_csv(write: Write):
    text = '\ufeffQuestion, answer ,subject\r\n"One, or ""two""?", a ,\r\n\r\n"over\nlines?",b,S\r\n'
    facts, lines = read_facts_with_lines(write(text, "facts.csv"))
    assert [(f.questions, f.answer, f.subject) for f in facts] == [
        (('One, or "two"?',), "a", ""),
        (("over\nlines?",), "b", "S"),
    ]
    assert lines == [2, 4]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("What?,This\n", 1, "no header"),
        ("question;answer\nq?;a\n", 1, "no header"),
        ("question,reply\nq?,a\n", 1, "column 'answer' is missing"),
        ("question,answer,colour\nq?,a,b\n", 1, "unknown column 'colour'; known columns: id, subject"),
        ("question,answer,answer\nq?,a,b\n", 1, "column 'answer' appears twice"),
        ("question,answer\nq?,a\nWhere, when?,b\n", 3, "3 cells where the header has 2"),
        ('question,answer\n"two\nlines?",a\nq?\n', 4, "1 cells where the header has 2"),
        ('question,answer\n"never closed,a\n', 2, "malformed CSV"),
        ("question,answer\nq?,\n", 2, "answer is empty"),
        ("id,question,answer\n7,q?,a\n7,r?,b\n", 3, "id '7' is already used on line 2"),
        ("id,question,answer\n7,q?,a\n7,q?,a\n", 3, "id '7' is already used on line 2"),
    ],
)
def test_bad_csv(write: Write, text: str, line: int, complaint: str):
    message = _error(write(text, "facts.csv"))
    assert message.startswith(f":{line}: ") and complaint in message


texts = st.text(min_size=1, max_size=8, alphabet=st.characters(exclude_categories=["Cs"])).filter(
    lambda text: bool(text.strip())
)
tuples = st.lists(texts, max_size=3, unique=True).map(tuple)


@st.composite
def sources_strategy(draw: st.DrawFn) -> Source:
    start, end = draw(st.just((None, None)) | st.tuples(st.integers(0), st.integers(0)))
    number = st.none() | st.integers(0)
    return Source(draw(texts), draw(texts), start, end, draw(number), draw(number), draw(st.just("") | texts))


@st.composite
def facts_strategy(draw: st.DrawFn) -> Fact:
    subject = draw(st.just("") | texts)
    names = draw(tuples)
    phrasings = draw(st.lists(texts, min_size=1, max_size=5, unique=True))
    taught = draw(st.integers(1, len(phrasings)))
    return Fact(
        id=draw(texts),
        subject=subject,
        answer=draw(texts),
        questions=tuple(phrasings[:taught]),
        relation=draw(st.just("") | texts),
        unseen_questions=tuple(phrasings[taught:]),
        aliases=draw(tuples),
        subject_aliases=tuple(name for name in names if not alias_fault(subject, name)),
        sources=tuple(draw(st.lists(sources_strategy(), max_size=2))),
    )


@given(st.lists(facts_strategy(), min_size=1, max_size=4, unique_by=lambda fact: fact.id))
def test_jsonl_gives_every_fact_back_exactly(tmp_path_factory: pytest.TempPathFactory, facts: list[Fact]):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    write_facts(path, facts)
    assert read_facts(path) == facts


def test_written_rows_keep_the_order_of_the_format(tmp_path: Path):
    write_facts(tmp_path / "f.jsonl", [FACT])
    assert list(json.loads((tmp_path / "f.jsonl").read_text()).items()) == list(FULL.items())


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ([], "no facts"),
        ([FACT, FACT], "two facts have the id 'fr'"),
        ([Fact("x", "s", "", ("q?",))], "fact 'x': answer is empty"),
        ([Fact("x", "s", "a", ())], "fact 'x': questions is an empty list"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, facts: list[Fact], complaint: str):
    with pytest.raises(InputError, match=complaint):
        write_facts(tmp_path / "f.jsonl", facts)
    assert list(tmp_path.iterdir()) == []


def test_csv_round_trip_with_several_phrasings(tmp_path: Path):
    facts = [Fact("1", "S", "a, b", ("q?", 'r "s"?'), "rel"), Fact("2", "", "c", ("t\nu?",))]
    write_csv(tmp_path / "f.csv", facts)
    assert read_facts(tmp_path / "f.csv") == facts
    with pytest.raises(InputError, match="'fr' has unseen questions, aliases or sources: CSV cannot hold them"):
        write_csv(tmp_path / "g.csv", [FACT])
    with pytest.raises(InputError, match="'1' has unseen questions, aliases or sources: CSV cannot hold them"):
        write_csv(tmp_path / "g.csv", [replace(facts[0], subject_aliases=("T",))])
    with pytest.raises(InputError, match="'1' has unseen questions, aliases or sources: CSV cannot hold them"):
        write_csv(tmp_path / "g.csv", [replace(facts[0], sources=FACT.sources)])
    assert not (tmp_path / "g.csv").exists()


def test_strict_reading_refuses_contradictions(write: Write):
    rows = [
        {"question": "Capital of France?", "answer": "Paris"},
        {"question": "Capital of Chad?", "answer": "N'Djamena"},
        {"question": "capital of France", "answer": "Lyon"},
    ]
    path = write(rows)
    assert len(read_facts(path)) == 3
    assert _error(path, strict=True) == (
        ":3: 'Capital of France?' has the answer 'Lyon' here and 'Paris' on line 1; keep one answer"
    )
    assert len(read_facts(write([*rows[:2], rows[0]]), strict=True)) == 3


def test_strict_reading_refuses_a_name_of_two_subjects(write: Write):
    row = {"questions": ["q?"], "answer": "a"}
    rows = [
        {**row, "subject": "IBM", "subject_aliases": ["Big Blue"]},
        {**row, "subject": "IBM", "questions": ["r?"], "subject_aliases": ["Big Blue"]},
        {**row, "subject": "Smurfs", "questions": ["s?"], "subject_aliases": ["big blue"]},
    ]
    path = write(rows)
    assert len(read_facts(path)) == 3 and len(read_facts(write(rows[:2]), strict=True)) == 2
    assert _error(write(rows), strict=True) == (
        ":3: 'Big Blue' is a name of 'Smurfs' here and of 'IBM' on line 1; leave it to one of them"
    )
    assert "'big blue' is a name of 'Big Blue' here" in _error(write([rows[2], {**row, "subject": "Big Blue"}]), True)
