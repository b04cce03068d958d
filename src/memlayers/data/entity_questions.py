"""Real facts to teach: EntityQuestions rows in the phrasings that ship with the pocket backbone. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from memlayers.data.fact_files import read_facts
from memlayers.data.facts import Fact
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath

_POCKET = Path(__file__).parents[1] / "pocket"


def read_entity_questions(folder: StrPath, *, without: Iterable[str] = (), all_relations: bool = False) -> list[Fact]:
    """Reads the facts of the demo's 18 relations, each with every phrasing of its relation.

    The demo leaves out relations with few different answers, for which a frequent answer given always recalls much.
    A row counts if its question is worded as the relation's first phrasing (so that the subject can be cut out), if it
    has one answer, and if both are short and plain enough for a pocket backbone. A subject is taken once.

    Args:
        folder: holds one file of questions per relation, P19.jsonl and so on.
        without: subjects to leave out.
        all_relations: read every relation that has phrasings, not the demo's alone.

    Raises:
        InputError: no file of these relations, or a malformed one.
    """
    phrasings = json.loads((_POCKET / "phrasings.json").read_text(encoding="utf-8"))
    demo = {fact.id.split("-")[0] for fact in read_facts(_POCKET / "demo.jsonl")}
    relations = sorted(phrasings if all_relations else demo)
    files = [path for relation in relations if (path := Path(folder) / f"{relation}.jsonl").is_file()]
    if not files:
        raise InputError(f"{folder}: no EntityQuestions there; give the folder that holds {relations[0]}.jsonl")
    taken = set(without)
    found: list[Fact] = []
    for path in files:
        templates = phrasings[path.stem]
        before, after = templates["taught"][0].split("{s}")
        for row in read_facts(path):
            question = row.questions[0]
            subject = question[len(before) : len(question) - len(after)]
            plain = question.startswith(before) and question.endswith(after) and 3 <= len(subject) <= 40
            if plain and subject not in taken and not row.aliases and 2 <= len(row.answer) <= 30:
                taken.add(subject)
                found.append(
                    Fact(
                        f"{path.stem}-eq{len(found)}", subject, row.answer,
                        tuple(template.format(s=subject) for template in templates["taught"]), templates["label"],
                        tuple(template.format(s=subject) for template in templates["unseen"]),
                    )
                )  # fmt: skip
    return found
