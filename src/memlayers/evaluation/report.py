"""What an evaluation found, in Markdown: results.json -> report.md; several of them -> compare.md. No torch.

`plots` draws the picture that goes with each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Final

from memlayers.evaluation.asked import splits_in
from memlayers.evaluation.formatting import format_value, percent, relative_change
from memlayers.evaluation.plots import MOST_RUNS, draw_asked, draw_results, draw_runs
from memlayers.evaluation.results import HIGHER_IS_BETTER, Results, Row, read_results
from memlayers.utils.errors import InputError
from memlayers.utils.files import StrPath, atomic_write_bytes, atomic_write_text

ASKED_COLUMNS: Final = (
    ("recall", "recall"),
    ("recall, model alone", "recall_generated"),
    ("answered by memory", "answered_by_memory"),
    ("n", "recall"),
    ("made up", "fabricated"),
    ("made up by memory", "fabricated_by_memory"),
    ("n, never taught", "fabricated"),
)
"""What the table of `memlayers eval --asked` shows of each split: label and metric."""


def write_report(results_path: StrPath, out_dir: StrPath) -> tuple[Path, Path]:
    """Write report.md (figures, answers, environment) and recall.png into `out_dir`.

    Returns:
        The two paths.

    Raises:
        InputError: the results cannot be read, or `out_dir` cannot be written.
        WorkError: matplotlib is missing, or the disk is full.
    """
    results = read_results(results_path)
    picture = draw_asked(results) if splits_in([results]) else draw_results(results)
    paths = Path(out_dir) / "report.md", Path(out_dir) / "recall.png"
    atomic_write_bytes(paths[1], picture)
    atomic_write_text(paths[0], _markdown(results, Path(results_path).name, paths[1].name))
    return paths


def compare_report(runs: Sequence[tuple[str, StrPath]], out_dir: StrPath) -> tuple[Path, Path]:
    """Write compare.md (one column per run, the best figure of a row in bold) and compare.png into `out_dir`.

    Args:
        runs: (label, path of results.json), each label once, at most `MOST_RUNS`.
        out_dir: where the two files go.

    Returns:
        The two paths.

    Raises:
        InputError: no runs, too many, a label twice, unreadable results, or an unwritable `out_dir`.
        WorkError: matplotlib is missing, or the disk is full.
    """
    labels = [label for label, _ in runs]
    if not 1 <= len(runs) <= MOST_RUNS or len(set(labels)) < len(labels):
        raise InputError(
            f"{len(runs)} runs to compare, {len(set(labels))} labels; give 1 to {MOST_RUNS} runs, "
            "each with its own label"
        )
    results = [(label, read_results(path)) for label, path in runs]
    picture = draw_runs(results)
    paths = Path(out_dir) / "compare.md", Path(out_dir) / "compare.png"
    atomic_write_bytes(paths[1], picture)
    atomic_write_text(paths[0], _comparison(results, paths[1].name))
    return paths


def _interval(row: Row) -> str:
    if row.ci_low is None or row.ci_high is None:
        return ""
    return f"{format_value(row.metric, row.ci_low)} to {format_value(row.metric, row.ci_high)}"


def _markdown(results: Results, source: str, picture: str) -> str:
    parts, note = (_asked_parts if splits_in([results]) else _scored_parts)(results, picture)
    if results.examples:
        columns = list(dict.fromkeys(name for example in results.examples for name in example))
        rows = [[_plain(example.get(name, "")) for name in columns] for example in results.examples]
        parts += ["## Answers", markdown_table(columns, rows)]
    machine = [(name, _plain(value)) for name, value in results.environment.items() if value is not None]
    parts += [
        "## Environment",
        markdown_table(("", ""), machine),
        "## Configuration",
        f"```json\n{json.dumps(results.config, indent=1, ensure_ascii=False)}\n```",
        f"Drawn from `{source}` alone. {note}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scored_parts(results: Results, picture: str) -> tuple[list[str], str]:
    """What the report of an evaluation begins with, and the note that it ends with."""
    table = [
        (
            row.metric,
            row.split,
            format_value(row.metric, row.value),
            _interval(row),
            f"{row.n:,}",
            "higher" if row.higher_is_better else "lower",
        )
        for row in results.rows
    ]
    parts = [
        "# What the memory learned, and what it cost",
        "\n".join(f"- {line}" for line in _in_short(results)),
        f"![recall against exposures, perplexity, known facts]({picture})",
        "Small markers: measured between epochs, recall and known facts on samples. Large markers: the rows below.",
        markdown_table(("metric", "split", "value", "95 % interval", "n", "better"), table, right=(2, 3, 4)),
    ]
    return parts, (
        "Recall is strict exact match in free generation; containment asks whether an accepted answer's words stand in "
        "what was said, token F1 how many words they share; intervals are 95 %, by bootstrap over the items."
    )


def _asked_parts(results: Results, picture: str) -> tuple[list[str], str]:
    """The same of an evaluation in the splits of `memlayers eval --asked`."""
    parts = [
        "# Facts asked as people ask",
        f"![recall, and what is made up, by split]({picture})",
        markdown_table(*asked_table([results]), right=range(1, 1 + len(ASKED_COLUMNS))),
    ]
    return parts, (
        "A question is right as its split is scored, by strict match in most; made up is an answer, under abstention "
        "and wrong, to a question about an entity that was never taught; intervals are 95 %, by bootstrap over the "
        "items."
    )


def asked_table(runs: Sequence[Results], *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """The table of `memlayers eval --asked`, a split per line: its head and its lines.

    Args:
        runs: one, or the same of several seeds: then their mean, from the lowest to the highest end of their intervals.
        intervals: whether to show these.
    """
    lines = []
    for split in splits_in(runs):
        found = [[row for run in runs if (row := run.find(metric, split))] for _, metric in ASKED_COLUMNS]
        pairs = zip(ASKED_COLUMNS, found, strict=True)
        lines.append(
            [split, *(_n(rows) if label.startswith("n") else _mean(rows, intervals) for (label, _), rows in pairs)]
        )
    return ["split", *(label for label, _ in ASKED_COLUMNS)], lines


def _n(rows: Sequence[Row]) -> str:
    """The number of items, or of the fewest and the most."""
    ends = sorted({row.n for row in rows})
    return "-".join(f"{n:,}" for n in dict.fromkeys((*ends[:1], *ends[-1:])))


def _mean(rows: Sequence[Row], intervals: bool) -> str:
    """The mean of some rows of one metric, and their intervals together; "" for none."""
    if not rows:
        return ""
    value = format_value(rows[0].metric, mean(row.value for row in rows))
    lows, highs = ([end for row in rows if (end := getattr(row, name)) is not None] for name in ("ci_low", "ci_high"))
    if not (intervals and lows and highs):
        return value
    return f"{value} [{format_value(rows[0].metric, min(lows))} to {format_value(rows[0].metric, max(highs))}]"


def _in_short(results: Results) -> list[str]:
    """The sentences a reader wants first; each only where its rows are there."""
    lines = []
    taught, unseen = results.find("recall", "taught"), results.find("recall", "unseen_phrasing")
    alone, shown = results.find("recall", "backbone"), results.find("exposures_per_fact", "all")
    if taught:
        line = f"Recall of {taught.n:,} facts: **{percent(taught.value)}**"
        line += f" after {shown.value:.2f} exposures each" if shown else ""
        line += f"; **{percent(unseen.value)}** on phrasings never taught" if unseen else ""
        lines.append(line + (f"; the backbone alone: {percent(alone.value)}." if alone else "."))
    before, after = _pair(results, "known_facts")
    if before and after and before.value > 0:
        lines.append(
            f"Known facts kept: **{percent(after.value / before.value)}** of the backbone's "
            f"({percent(before.value)} before, {percent(after.value)} after)."
        )
    before, after = _pair(results, "known_facts_containment")
    same = results.find("unchanged_answers", "known")
    if before and after and same:
        lines.append(
            f"Known facts by containment: {percent(before.value)} before, **{percent(after.value)}** after; "
            f"**{percent(same.value)}** of the answers are the backbone's, word for word."
        )
    before, after = _pair(results, "perplexity")
    if before and after:
        values = [format_value("perplexity", row.value) for row in (before, after)]
        change = relative_change(before.value, after.value)
        lines.append(f"Perplexity: {values[0]} before, {values[1]} after (**{change}**).")
    same = results.find("identical_logits", "general_text")
    if same:
        lines.append(f"General-text tokens with bit-identical logits: **{percent(same.value)}**.")
    return lines


def _pair(results: Results, metric: str) -> tuple[Row | None, Row | None]:
    return results.find(metric, "backbone"), results.find(metric, "memory")


def _comparison(runs: Sequence[tuple[str, Results]], picture: str) -> str:
    keys = list(dict.fromkeys((row.metric, row.split) for _, results in runs for row in results.rows))
    table = []
    for metric, split in keys:
        rows = [results.find(metric, split) for _, results in runs]
        values = [row.value for row in rows if row is not None]
        best = max(values) if HIGHER_IS_BETTER[metric] else min(values)
        # The backbone is the same in every run, so nothing in its rows is better than the rest.
        marked = split != "backbone" and len(set(values)) > 1
        cells = [_cell(row, bold=marked and row is not None and row.value == best) for row in rows]
        table.append((metric, split, *cells))
    head = ("metric", "split", *(label for label, _ in runs))
    parts = [
        "# Runs side by side",
        f"![recall against exposures, perplexity, known facts]({picture})",
        "Small markers: measured between epochs, recall and known facts on samples. Large markers: the rows below.",
        markdown_table(head, table, right=range(2, len(head))),
        "Best of a row in bold; 95 % intervals in brackets.",
    ]
    return "\n\n".join(parts) + "\n"


def _cell(row: Row | None, bold: bool) -> str:
    if row is None:
        return ""
    value = format_value(row.metric, row.value)
    interval = _interval(row)
    return (f"**{value}**" if bold else value) + (f" [{interval}]" if interval else "")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; the columns numbered in `right` are set to the right."""
    right = set(right)
    lines = [head, ["---:" if i in right else "---" for i in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


def _escape(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
