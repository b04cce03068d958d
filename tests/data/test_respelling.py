from __future__ import annotations

import random

from memlayers.data.respelling import respelled

QUESTION = "Who founded Grey Wolves?"


def ways(name: str, aliases: tuple[str, ...] = ()) -> set[str]:
    return {respelled(QUESTION, name, aliases, random.Random(seed)) for seed in range(300)}


def test_the_whole_the_name_or_an_alias() -> None:
    whole = {"who founded grey wolves?", "WHO FOUNDED GREY WOLVES?"}
    name = {"Who founded grey wolves?", "Who founded GREY WOLVES?", "Who founded Grey-Wolves?",
            'Who founded "Grey Wolves"?', "Who founded **Grey Wolves**?"}  # fmt: skip
    assert ways("Grey Wolves") == whole | name
    assert ways("Grey Wolves", ("The Pack",)) == whole | name | {"Who founded The Pack?"}


def test_without_the_name_in_it_the_whole() -> None:
    assert ways("Kylotonn", ("The Pack",)) == ways("") == {"who founded grey wolves?", "WHO FOUNDED GREY WOLVES?"}


def test_the_seed_decides() -> None:
    first = [respelled(QUESTION, "Grey Wolves", (), random.Random(seed)) for seed in range(20)]
    assert first == [respelled(QUESTION, "Grey Wolves", (), random.Random(seed)) for seed in range(20)]
