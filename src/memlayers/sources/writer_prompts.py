"""What a writer is asked, and the JSON found in what it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.sources.chunks import Chunk

TAUGHT: Final = 10
"""Wordings of a fact that are taught, at least."""
UNSEEN: Final = 3
"""Wordings of a fact that are only asked."""


def _schema(title: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """Of an object with a list "facts" of such items; as strict as servers ask for."""

    def closed(properties: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": dict(properties),
            "required": list(properties),
            "additionalProperties": False,
        }

    return {"title": title, **closed({"facts": {"type": "array", "items": closed(item)}})}


_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
FACTS_SCHEMA: Final = _schema("facts", dict.fromkeys(("subject", "relation", "answer", "evidence"), _TEXT))
WORDINGS_SCHEMA: Final = _schema("wordings", {"number": {"type": "integer"}, "questions": _TEXTS, "reversed": _TEXTS})
JOINED_SCHEMA: Final = _schema("joined", {"number": {"type": "integer"}, "questions": _TEXTS})

_FACTS: Final = """\
List every fact that the text states, one by one, as JSON: {"facts": [{"subject", "relation", "answer", "evidence"}]}.
- evidence: the one sentence, list item or table row of the text that states the fact, copied letter by letter.
- answer: the shortest words that give it, copied from the evidence: a name, a number with its unit, a date, a place. \
Several that are listed together are one answer.
- subject: the name of whom or what the fact is about, as the text or a heading spells it. Never a pronoun, never \
"the company" or "the product": put the name for which it stands.
- relation: what the answer is to the subject, a noun without article: "price", "founder", "opening time".
A sentence that states several facts is listed once for each. State nothing that the text does not say."""

_FACTS_TEXT: Final = """\
Headings: Harbour Guide
Text:
2. The ferry
The ferry Marlin was built by Odd Strand in 1974. It carries 60 passengers and leaves from Pier 3."""

_FACTS_ANSWER: Final = (
    ("Marlin", "builder", "Odd Strand", "The ferry Marlin was built by Odd Strand in 1974."),
    ("Marlin", "year of building", "1974", "The ferry Marlin was built by Odd Strand in 1974."),
    ("Marlin", "capacity", "60 passengers", "It carries 60 passengers and leaves from Pier 3."),
    ("Marlin", "pier", "Pier 3", "It carries 60 passengers and leaves from Pier 3."),
)

_WORDINGS: Final = f"""\
For each fact write questions that people would put to hear its answer, as JSON: \
{{"facts": [{{"number", "questions", "reversed"}}]}}.
- questions: {TAUGHT + UNSEEN} different ones. Each holds the subject, spelled as it is given, stands alone, and asks \
for exactly this answer. None holds the answer. Vary them as people do: who, what, which, when, where; short and long; \
"Tell me ..."; "Name ...".
- reversed: 5 questions that hold the answer and ask for the subject, without naming it; [] where the answer is a \
number, a date, or something that many subjects could have.
Write in the language of the evidence."""

_WORDINGS_FACT: Final = Fact("", "Marlin", "Odd Strand", ("",), "builder")
_WORDINGS_EVIDENCE: Final = "The ferry Marlin was built by Odd Strand in 1974."
_WORDINGS_ANSWER: Final = (
    (
        "Who built the Marlin?", "Who was the builder of the Marlin?", "By whom was the ferry Marlin built?",
        "What is the name of the Marlin's builder?", "Name the builder of the Marlin.", "Marlin: who built it?",
        "Tell me who built the ferry Marlin.", "Which builder made the Marlin?", "The ferry Marlin was built by whom?",
        "Do you know who built the Marlin?", "Who is known as the builder of the ferry Marlin?",
        "Whose work is the ferry Marlin?", "The Marlin has which builder?",
    ),
    (
        "What did Odd Strand build?", "Which ferry was built by Odd Strand?", "Name the ferry that Odd Strand built.",
        "Of which ferry was Odd Strand the builder?", "Odd Strand is the builder of what?",
    ),
)  # fmt: skip

_JOINED: Final = f"""\
Each entry gives two facts about one thing in between. Write {TAUGHT + UNSEEN} different questions for each that can \
only be answered by joining both, as JSON: {{"facts": [{{"number", "questions"}}]}}.
Each question holds the start, spelled as it is given, asks for exactly the answer, and names neither the thing in \
between nor the answer.
Example: start "Odd Strand"; Marlin: builder: Odd Strand; Marlin: pier: Pier 3; answer "Pier 3". A question: "From \
which pier does the ferry built by Odd Strand leave?"
Write in the language of the facts."""


def facts_messages(chunk: Chunk) -> list[Message]:
    """Asks for the facts of a chunk, after an example."""
    headings = f"Headings: {' > '.join(chunk.headings)}\n" if chunk.headings else ""
    example = [dict(zip(FACTS_SCHEMA["properties"]["facts"]["items"]["required"], each, strict=True))
               for each in _FACTS_ANSWER]  # fmt: skip
    return [
        _user(f"{_FACTS}\n\n{_FACTS_TEXT}"),
        _assistant(example),
        _user(f"{headings}Text:\n{chunk.text}"),
    ]


def wordings_messages(facts: Sequence[Fact]) -> list[Message]:
    """Asks for wordings of some facts, after an example; they are numbered from 1."""
    questions, reversed_ones = _WORDINGS_ANSWER
    example = {"number": 1, "questions": list(questions), "reversed": list(reversed_ones)}
    return [
        _user(f"{_WORDINGS}\n\n{_entry(1, _WORDINGS_FACT, _WORDINGS_EVIDENCE)}"),
        _assistant([example]),
        _user("\n".join(_entry(i, fact, fact.sources[0].evidence) for i, fact in enumerate(facts, 1))),
    ]


def joined_messages(pairs: Sequence[tuple[str, Fact, Fact]]) -> list[Message]:
    """Asks for questions that join two facts; given are the start of each, the fact that leads on, and the other."""
    lines = [
        f"{i}. start {json.dumps(start, ensure_ascii=False)}; {first.subject}: {first.relation}: {first.answer}; "
        f"{second.subject}: {second.relation}: {second.answer}; answer {json.dumps(second.answer, ensure_ascii=False)}"
        for i, (start, first, second) in enumerate(pairs, 1)
    ]
    return [_user("\n".join([_JOINED, "", *lines]))]


def repair_message(faults: Sequence[str]) -> Message:
    """Tells a writer what was wrong with its last answer."""
    listed = "\n".join(f"- {fault}" for fault in faults[:10])
    return _user(f"Some of this is wrong:\n{listed}\nGive these again, put right, as JSON of the same form.")


def items_of(text: str, *fields: str) -> list[dict[str, Any]] | None:
    """The items of an answer that have some fields; None where it holds no JSON of this form at all.

    The JSON may stand in a fenced block or between words, and may lack its end: its whole items count.
    """
    wanted = set(fields)
    text = text.rpartition("</think>")[2]
    found: list[dict[str, Any]] = []
    readable = False
    for value in _objects(text):
        if isinstance(items := value.get("facts"), list):
            readable = True
            found += [each for each in items if isinstance(each, dict) and wanted <= set(each)]
        elif wanted <= set(value):
            found.append(value)
    return found if readable or found else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every whole JSON object of a text that lies in no other whole one."""
    decoder = json.JSONDecoder()
    place = 0
    while (place := text.find("{", place)) >= 0:
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError:
            place += 1
        except RecursionError:  # thousands of them within each other are no answer
            return
        else:  # half of a character, as in "\\ud83d", could not be written down
            yield json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "ignore"))


def _entry(number: int, fact: Fact, evidence: str) -> str:
    given = {"number": number, "subject": fact.subject, "relation": fact.relation, "answer": fact.answer}
    return json.dumps({**given, "evidence": " ".join(evidence.split())}, ensure_ascii=False)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(items: Sequence[Mapping[str, Any]]) -> Message:
    return {"role": "assistant", "content": json.dumps({"facts": items}, ensure_ascii=False)}
