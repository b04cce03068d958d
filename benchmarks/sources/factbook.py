"""How many facts that rules find in Factbook articles are right: 100 drawn, to be judged one by one.

    python -m benchmarks.sources.factbook --set report          # writes the list to judge; seconds, one core
    python -m benchmarks.sources.factbook --set report --score  # the share that was judged right

Each country of the CIA World Factbook (`factbook/countries.jsonl` of the public data) is written as an article in
Markdown, as its site lays it out: chapters, fields, and in each field a value or `key: value` lines. Rules were chosen
on the 80 countries of `--set choose`; `--set report` has 40 others. Writes into benchmarks/results/sources: a Markdown
page with the facts drawn, each with its question and evidence, and a line of JSON for each with what was judged
("right" or why not), which `--score` reads. Evidence that is not in its article is counted over all facts.
"""

from __future__ import annotations

import html
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, RESULTS, SEED, argument_parser, start
from memlayers.data.facts import Fact
from memlayers.evaluation.statistics import mean_interval
from memlayers.sources.claims import Extraction
from memlayers.sources.documents import read_document
from memlayers.sources.rules import from_documents
from memlayers.utils.errors import InputError
from memlayers.utils.files import atomic_write_text, read_text

COUNTRIES = DATA / "factbook" / "countries.jsonl"
SETS = {"choose": (0, 80), "report": (80, 120)}
DRAWN = 100


def main() -> None:
    """Runs the script."""
    parser = argument_parser(__doc__)
    parser.add_argument("--set", choices=[*SETS], default="report", help="of countries")
    parser.add_argument("--score", action="store_true", help="run nothing; the share that was judged right")
    parser.add_argument("--seed", type=int, default=SEED, help="of the facts drawn")
    arguments = parser.parse_args()
    results = RESULTS / "sources" / f"factbook-{arguments.set}.jsonl"
    if arguments.score:
        score(results)
    else:
        draw(arguments.set, arguments.seed, results)


def countries(which: str) -> list[dict[str, Any]]:
    """The countries of a set; no country is in both."""
    rows = [json.loads(line) for line in read_text(COUNTRIES).splitlines()]
    return random.Random(SEED).sample(rows, len(rows))[slice(*SETS[which])]


def article(row: dict[str, Any]) -> str:
    """A country's article in Markdown."""
    lines = [f"# {row['country']}"]
    chapter = field = key = ""
    for path, value in row["facts"].items():
        parts = [part.strip() for part in html.unescape(path).split(" / ", 2)]
        text = " ".join(html.unescape(value).split())
        if parts[0] != chapter:
            chapter, field = parts[0], ""
            lines += ["", f"## {chapter}"]
        if parts[1] != field:
            field, key = parts[1], ""
            lines += ["", f"### {field}", ""]
        if len(parts) == 2:
            lines.append(text)
            continue
        above, _, below = parts[2].partition(": ")
        if not below:
            key = above
            lines.append(f"- {above}: {text}")
            continue
        if above != key:
            key = above
            lines.append(f"- {above}:")
        lines.append(f"  - {text if text.startswith(f'{below}: ') else f'{below}: {text}'}")
    return "\n".join(lines) + "\n"


def found_in(rows: list[dict[str, Any]]) -> tuple[Extraction, int]:
    """What the rules find in the articles, and how many facts have evidence that is not in their article."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for row in rows:
            path = Path(folder) / f"{row['country'].replace('/', '-')}.md"
            path.write_text(article(row), encoding="utf-8")
            paths.append(path)
        found = from_documents(paths)
        texts = {str(path): read_document(path).text for path in paths}
    astray = 0
    for fact in found.facts:
        for source in fact.sources:
            text = texts[source.document]
            astray += text[source.start : source.end] != source.evidence or fact.answer not in source.evidence
    return found, astray


def draw(which: str, seed: int, results: Path) -> None:
    """Writes the facts to judge; what was judged before of the same facts is kept."""
    found, astray = found_in(countries(which))
    drawn = random.Random(seed).sample(found.facts, DRAWN)
    before = {row["id"]: row for row in _rows(results)} if results.is_file() else {}
    rows = []
    for fact in drawn:
        row = _row(fact)
        old = before.get(fact.id)
        rows.append({**row, "judged": old["judged"] if old and old["question"] == row["question"] else ""})
    summary = {"set": which, "seed": seed, "facts": len(found.facts), "passages": len(found.passages), "astray": astray}
    _write(results, summary, rows)
    print(f"{len(found.facts):,} facts of {len(found.passages):,} passages; {astray} with evidence astray; {results}")


def score(results: Path) -> None:
    """Prints the share of facts judged right and writes the page."""
    rows = _rows(results)
    summary = json.loads(read_text(results).splitlines()[0])
    if open_ones := [row["id"] for row in rows if not row["judged"]]:
        raise InputError(f"{results}: {len(open_ones)} facts are not judged; judge {open_ones[0]} and the others")
    right = mean_interval([row["judged"] == "right" for row in rows])
    summary["right"] = {"value": right.value, "ci_low": right.ci_low, "ci_high": right.ci_high, "n": right.n}
    _write(results, summary, rows)
    print(f"right: {right.value:.1%} ({right.ci_low:.1%} to {right.ci_high:.1%}), n {right.n}")


def _row(fact: Fact) -> dict[str, str]:
    return {
        "id": fact.id,
        "subject": fact.subject,
        "relation": fact.relation,
        "question": fact.questions[0],
        "unseen": fact.unseen_questions[0],
        "answer": fact.answer,
        "evidence": fact.sources[0].evidence,
    }


def _rows(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(results).splitlines()[1:]]


def _write(results: Path, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    lines = [summary, *rows]
    atomic_write_text(results, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    page = [f"# Facts of Factbook articles, by rules: {len(rows)} of {summary['facts']:,}, judged one by one", ""]
    if "right" in summary:
        share = summary["right"]
        page += [
            f"Right: {share['value']:.1%} (95 % interval {share['ci_low']:.1%} to {share['ci_high']:.1%}). "
            f"Facts whose evidence is not in their article: {summary['astray']} of {summary['facts']:,}.", "",
        ]  # fmt: skip
    page += ["| | question | answer | evidence | judged |", "|---|---|---|---|---|"]
    cells = ("question", "answer", "evidence", "judged")
    page += [f"| {i} | {' | '.join(row[cell].replace('|', '/') for cell in cells)} |" for i, row in enumerate(rows, 1)]
    atomic_write_text(results.with_suffix(".md"), "\n".join(page) + "\n")


if __name__ == "__main__":
    start(main)
