"""Recall against the length of the answer: passages of Wikipedia articles, taught to be recited *.

A backbone is taught passages of one length each (default settings), one a subject, and asked in wordings that were
taught and in others. The passages are whole sentences from the middle of an article, counted in the backbone's tokens.
One JSON a cell (backbone, length, facts, seed) in ``benchmarks/results/sources/long_answers``, written whole or not at
all; what is there is not run again. Some minutes a cell on pocket, about an hour on SmolLM2.

Example: ``python -m benchmarks.sources.long_answers --backbone pocket --tokens 30-100 --facts 100 --seed 1``
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import common
from memlayers import TeachConfig, evaluate, load_backbone
from memlayers.data.encoding import answer_length
from memlayers.data.facts import Fact
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULTS: Final = common.RESULTS / "sources" / "long_answers"
ARTICLES: Final = common.DATA / "wikipedia" / "articles.jsonl.xz"
TAUGHT: Final = (
    "What is written about {}?", "Tell me what the notes say about {}.", "Recite the entry on {}.",
    "What does the record say of {}?", "Quote the passage on {}.", "Give me the entry for {}.",
    "What do you have on file about {}?", "Read me the note on {}.", "Which passage describes {}?",
    "Repeat what is stored about {}.",
)  # fmt: skip
UNSEEN: Final = (
    "What is noted about {}?", "Please recite what the file says about {}.", "Can you quote the entry on {}?"
)  # fmt: skip
_TITLE: Final = re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+){1,2}")
_SENTENCE: Final = re.compile(r"(?<=[a-z]\.)\s+(?=[A-Z])")
_SPARE: Final = 5  # so many times the facts are found before some are drawn


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    arguments = common.drawing_parser(__doc__)
    add = arguments.add_argument
    add("--backbone", default="pocket", help="pocket, smollm2, ... [pocket]")
    add("--tokens", default="30-100", help="of an answer with its end, FROM-TO [30-100]")
    add("--facts", type=int, default=100, help="[100]")
    add("--seed", type=int, default=common.SEED, help="of the facts and of teaching [137]")
    return arguments


def passages(tokenizer: PreTrainedTokenizerBase, least: int, most: int) -> Iterator[Fact]:
    """One passage of each article that has one of this length, as a fact about the article's subject."""
    if not ARTICLES.is_file():
        raise InputError(f"{ARTICLES}: not there; see benchmarks/README.md")
    with lzma.open(ARTICLES, "rt", encoding="utf-8") as file:
        for line in file:
            article: dict[str, Any] = json.loads(line)
            title = article["title"]
            if not _TITLE.fullmatch(title):
                continue
            sentences = _SENTENCE.split(article["text"].replace("\n", " "))[3:40]
            found = (_passage(tokenizer, sentences[i:], least, most) for i in range(len(sentences)))
            if text := next((each for each in found if each and title not in each), ""):
                wordings = [tuple(each.format(title) for each in some) for some in (TAUGHT, UNSEEN)]
                yield Fact(title, title, text, wordings[0], "entry", wordings[1])


def _passage(tokenizer: PreTrainedTokenizerBase, sentences: list[str], least: int, most: int) -> str:
    """The first of these sentences, with as many of the next as it takes; "" if too long, or no plain text."""
    text = ""
    for sentence in sentences:
        text = f"{text} {sentence.strip()}".strip()
        if not text.isascii() or "==" in text or not text[:1].isupper():
            return ""
        length = answer_length(tokenizer, text)
        if length >= least:
            return text if length <= most else ""
    return ""


def run(options: argparse.Namespace) -> Results:
    """Teaches one cell, and asks."""
    least, most = map(int, options.tokens.split("-"))
    _, tokenizer = load_backbone(options.backbone)
    found = []
    for fact in passages(tokenizer, least, most):
        found.append(fact)
        if len(found) == _SPARE * options.facts:
            break
    facts = common.drawn(found, options.facts, options.seed)
    config = TeachConfig().with_flags(backbone=options.backbone, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        memory = common.taught_memory(facts, Path(folder) / "memory", config)
        results = evaluate(memory, facts=facts, phrasings=3, seed=options.seed)
    told = {"facts": len(facts), "tokens": options.tokens}
    return replace(results, config={**told, **config.flags()})


def draw() -> None:
    """The table of all cells that are there."""
    cells = sorted(
        (read_results(path) for path in RESULTS.glob("*.json")),
        key=lambda cell: (cell.config["backbone"], int(cell.config["tokens"].split("-")[0]), cell.config["seed"]),
    )
    rows = []
    for cell in cells:
        of = {(row.metric, row.split): row for row in cell.rows}
        config = cell.config
        rows.append([
            config["backbone"], config["tokens"].replace("-", " to "), config["facts"], config["seed"],
            *(
                common.row_with_interval(of.get((metric, split)))
                for metric, split in (
                    ("recall", "taught"), ("recall", "unseen_phrasing"), ("recall_token_f1", "unseen_phrasing"),
                    ("recall_containment", "unseen_phrasing"), ("recall_token_f1", "backbone"),
                )
            ),
        ])  # fmt: skip
    head = ["backbone", "tokens", "facts", "seed", "exact, taught", "exact, never taught", "token F1, never taught",
            "containment, never taught", "token F1 of the bare backbone"]  # fmt: skip
    atomic_write_text(RESULTS / "table.md", common.markdown_table(head, rows) + "\n")


def main() -> None:
    """Runs a cell, or draws the table."""
    options = parser().parse_args()
    if not options.draw:
        place = RESULTS / f"{options.backbone}-{options.tokens}-{options.facts}-{options.seed}.json"
        if not place.is_file():
            results = run(options)
            RESULTS.mkdir(parents=True, exist_ok=True)
            write_results(place, results)
    draw()


if __name__ == "__main__":
    common.start(main)
