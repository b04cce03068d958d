"""Questions in other languages become the question that was taught, or stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memlayers
from memlayers.data.conversations import Message
from memlayers.data.facts import Fact
from memlayers.linking.config import LinkConfig
from memlayers.linking.languages import lexicon_words
from memlayers.linking.linker import FUNCTION_WORDS, NameLinker
from memlayers.linking.standalone import standalone_questions

POCKET = Path(memlayers.__file__).parent / "pocket"
FOUNDER, ORIGIN = "Who founded Kylotonn?", "Which country is Kylotonn from?"
BORN, SPOUSE, JOB = "Where was Igor Kvetnoy born?", "Who is Igor Kvetnoy married to?", "What does Igor Kvetnoy do?"
SEAT, OWNER = "Where is the headquarters of Oakmere Group?", "Who owns Oakmere Group?"
GENRE, MAKER = "What genre is Mini Ninjas?", "Which company is Mini Ninjas produced by?"
AUTHOR, TONGUE = "Who is the author of The Great Wolf?", "Which language was The Great Wolf written in?"
CAPITAL, PEOPLE = "What is the capital of Veloria?", "How many inhabitants does Veloria have?"
SCHOOL, DIED = "Where was Maria Halden educated?", "In which town did Maria Halden die?"
SINGER, LABEL = "Who performed Blue Lantern?", "What music label is Blue Lantern represented by?"
FACTS = [
    Fact("a", "Kylotonn", "Yann Tamb", (FOUNDER, "Name the founder of Kylotonn."), "founder"),
    Fact("b", "Kylotonn", "France", (ORIGIN,), "country of origin"),
    Fact("c", "Igor Kvetnoy", "Minsk", (BORN, "What is the birthplace of Igor Kvetnoy?"), "place of birth"),
    Fact("d", "Igor Kvetnoy", "Ann", (SPOUSE,), "spouse"),
    Fact("e", "Igor Kvetnoy", "chemist", (JOB,), "occupation"),
    Fact("f", "Oakmere Group", "Leeds", (SEAT, "In which city is Oakmere Group based?"), "headquarters"),
    Fact("g", "Oakmere Group", "Halden", (OWNER,), "owner"),
    Fact("h", "Mini Ninjas", "action", (GENRE,), "genre"),
    Fact("i", "Mini Ninjas", "IO", (MAKER, "Who is the manufacturer of Mini Ninjas?"), "manufacturer"),
    Fact("j", "The Great Wolf", "Bo", (AUTHOR, "Who wrote The Great Wolf?"), "author"),
    Fact("k", "The Great Wolf", "Danish", (TONGUE,), "language"),
    Fact("l", "Veloria", "Ost", (CAPITAL,), "capital"),
    Fact("m", "Veloria", "400", (PEOPLE,), "population"),
    Fact("n", "Maria Halden", "Oslo", (SCHOOL,), "educated at"),
    Fact("o", "Maria Halden", "Bern", (DIED,), "place of death"),
    Fact("p", "Blue Lantern", "Iris", (SINGER,), "performer"),
    Fact("q", "Blue Lantern", "Nord", (LABEL,), "record label"),
    Fact("r", "Edwin Land", "camera", ("What is Edwin Land's notable work?", "Where was Edwin Land born?")),
]
LINKER = NameLinker(FACTS)


def asked(text: str, linker: NameLinker = LINKER) -> str:
    messages: list[Message] = [{"role": "user", "content": text}]
    (found,) = standalone_questions(messages, linker, linker.config)
    assert not found.negated and not found.proposed
    return found.text


RIGHT = [
    # German
    ("Wer hat Kylotonn gegründet?", FOUNDER),
    ("Wer ist Kylotonns Gründer?", FOUNDER),
    ("Von wem stammt die Aufnahme Blue Lantern?", SINGER),
    ("De qui est l'enregistrement de Blue Lantern ?", SINGER),
    ("wo wurde igor kvetnoy geboren?", BORN),
    ("In welcher Stadt wurde Igor Kvetnoy geboren?", BORN),
    ("Wo liegt der Geburtsort von Kvetnoy?", BORN),
    ("Was ist Kvetnoy von Beruf?", JOB),
    ("Mit wem ist Igor Kvetnoy verheiratet?", SPOUSE),
    ("Wo liegt der Hauptsitz von Oakmere Group?", SEAT),
    ("Wem gehört die Firma Oakmere Group?", OWNER),
    ("Welches Genre hat Mini Ninjas?", GENRE),
    ("In welcher Sprache wurde „The Great Wolf“ geschrieben?", TONGUE),
    ("Kannst du mir sagen, wer The Great Wolf verfasst hat?", AUTHOR),
    ("WER HAT KYLOTONN GEGRÜNDET?", FOUNDER),
    ("wer hat kylotnon gegruendet", FOUNDER),
    ("Hallo! Ich habe eine Frage: Wer hat den Film Great Wolf geschrieben?", AUTHOR),
    ("In welcher Stadt starb die Politikerin Maria Halden?", DIED),
    ("Nenne die Hauptstadt von Veloria.", CAPITAL),
    ("Wie viele Einwohner hat Veloria?", PEOPLE),
    ("An welcher Universität hat Maria Halden studiert?", SCHOOL),
    ("Wo starb Maria Halden?", DIED),
    ("Aus welchem Land kommt Kylotonn?", ORIGIN),
    # French
    ("Qui a fondé Kylotonn ?", FOUNDER),
    ("Où est né Igor Kvetnoy ?", BORN),
    ("Dans quelle ville Igor Kvetnoy est-il né ?", BORN),
    ("Quel est le lieu de naissance de Kvetnoy ?", BORN),
    ("Quelle est la profession d'Igor Kvetnoy ?", JOB),
    ("Où se trouve le siège d’Oakmere Group ?", SEAT),
    ("À qui appartient Oakmere Group ?", OWNER),
    ("Qui est l'auteur de The Great Wolf ?", AUTHOR),
    ("Par quelle entreprise Mini Ninjas est-il produit ?", MAKER),
    ("Quelle est la capitale de Veloria ?", CAPITAL),
    ("Où est-ce que Maria Halden a fait ses études ?", SCHOOL),
    ("Qui chante Blue Lantern ?", SINGER),
    # Spanish
    ("¿Quién fundó Kylotonn?", FOUNDER),
    ("¿Dónde nació Igor Kvetnoy?", BORN),
    ("¿Con quién está casado Igor Kvetnoy?", SPOUSE),
    ("¿A qué género pertenece Mini Ninjas?", GENRE),
    ("¿Quién escribió The Great Wolf?", AUTHOR),
    ("¿En qué idioma fue escrito The Great Wolf?", TONGUE),
    ("¿Cuál es la sede de Oakmere Group?", SEAT),
    ("¿Cuántos habitantes tiene Veloria?", PEOPLE),
    ("¿De qué país es Kylotonn?", ORIGIN),
    ("¿En qué ciudad murió Maria Halden?", DIED),
    # Italian, Portuguese, Dutch
    ("Chi ha fondato Kylotonn?", FOUNDER),
    ("Dove è nato Igor Kvetnoy?", BORN),
    ("Chi è l'autore di The Great Wolf?", AUTHOR),
    ("Quem fundou a Kylotonn?", FOUNDER),
    ("Onde nasceu Igor Kvetnoy?", BORN),
    ("Qual é a capital de Veloria?", CAPITAL),
    ("Wie heeft Kylotonn opgericht?", FOUNDER),
    ("Waar is Igor Kvetnoy geboren?", BORN),
    ("Wat is het beroep van Igor Kvetnoy?", JOB),
]
LEFT = [
    # German: another thing is asked
    "Wann wurde Igor Kvetnoy geboren?",
    "Wo wurde Kylotonn gegründet?",
    "Wer ist die Mutter von Igor Kvetnoy?",
    "Wo wurde der Gründer von Kylotonn geboren?",
    "Wie alt ist Igor Kvetnoy?",
    "Was hat Kylotonn gegründet?",
    "Wie wurde Kylotonn gegründet?",
    "Wo wurde der Nachbar von Igor Kvetnoy geboren?",
    # yes or no, negated, nothing recognised, unknown or longer names
    "Wurde Kylotonn von Yann Tamb gegründet?",
    "Ist Igor Kvetnoy in Minsk geboren?",
    "Wer hat Kylotonn nicht gegründet?",
    "Erzähl mir etwas über Kylotonn.",
    "Wer hat Kylotonn Games gegründet?",
    "Wo wurde Max von Kvetnoy geboren?",
    "In welchem Land liegt Bern?",
    # French
    "Quand est né Igor Kvetnoy ?",
    "Est-ce que Kylotonn a été fondé par Yann Tamb ?",
    "Qui n'a pas fondé Kylotonn ?",
    "Combien d'enfants a Igor Kvetnoy ?",
    "Où a été fondé Kylotonn ?",
    "Igor Kvetnoy est-il né à Minsk ?",
    # Spanish
    "¿Cuándo nació Igor Kvetnoy?",
    "¿Es cierto que Yann Tamb fundó Kylotonn?",
    "¿Quién no fundó Kylotonn?",
    "¿Quién es el padre de Maria Halden?",
    "¿Fue Kylotonn fundado por Yann Tamb?",
    # Italian, Portuguese, Dutch
    "Quando è nato Igor Kvetnoy?",
    "È nato a Minsk Igor Kvetnoy?",
    "Quando foi fundada a Kylotonn?",
    "Igor Kvetnoy nasceu em Minsk?",
    "Wanneer is Igor Kvetnoy geboren?",
    "Is Igor Kvetnoy in Minsk geboren?",
    # English beside names in other languages
    "Kvetnoy wife?",
    "Was Igor Kvetnoy an artist?",
    "Who wrote Wo die wilden Kerle wohnen von Kylotonn?",
]


@pytest.mark.parametrize(("text", "question"), RIGHT)
def test_the_fact_is_asked_that_the_question_is_about(text: str, question: str) -> None:
    assert asked(text) == question
    assert asked(text, NameLinker(FACTS, LinkConfig(languages=False))) != question


@pytest.mark.parametrize("text", LEFT)
def test_what_no_fact_says_stays_as_it_is(text: str) -> None:
    assert asked(text).replace("Igor ", "") == text.replace("Igor ", "")


def test_english_is_never_taken_for_another_language() -> None:
    """The words that are a sign of a language are none of English wordings, and wordings stay as they are."""
    rows = [json.loads(line) for line in (POCKET / "demo.jsonl").read_text(encoding="utf-8").splitlines()[::25]]
    facts = [Fact(row["id"], row["subject"], row["answer"], tuple(row["questions"])) for row in rows]
    texts = [question for row in rows for question in (*row["questions"], *row["unseen_questions"])]
    texts += [text.lower() for text in texts] + [text.upper() for text in texts]
    assert FUNCTION_WORDS.isdisjoint(lexicon_words())
    known, plain = NameLinker(facts), NameLinker(facts, LinkConfig(languages=False))
    for text in texts:
        messages: list[Message] = [{"role": "user", "content": text}]
        assert standalone_questions(messages, known) == standalone_questions(messages, plain, plain.config)
