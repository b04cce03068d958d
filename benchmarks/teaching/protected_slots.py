"""What it costs and brings to keep at zero the slots that general text reads most: the trade-off curve.

Per share of protected slots, with the gate and without: the pocket backbone is taught 300 of the demo's facts with
``--protect shipped``, then scored like ``memlayers eval``: recall on taught and never-taught phrasings, known facts,
perplexity of held-out text. One JSON a point in ``benchmarks/results/protect``; what is there is not run again. Plot
and table are drawn from the files.

Example: ``python -m benchmarks.teaching.protected_slots`` (about 15 minutes on one core)
"""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks import common
from memlayers import TeachConfig
from memlayers.data.fact_files import public_questions
from memlayers.evaluation.evaluate import cost_rows, score_model
from memlayers.evaluation.results import Results, read_results, write_results
from memlayers.utils.environment import environment
from memlayers.utils.files import atomic_write_text

SEED, RESULTS = common.SEED, common.RESULTS / "protect"
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7)
FACTS, KNOWN, TEXT_TOKENS = 300, 300, 8192
COLUMNS = (
    ("recall, taught", "recall", "taught"),
    ("recall, never taught phrasings", "recall", "unseen_phrasing"),
    ("known facts, change", "known_facts", "change"),
    ("perplexity", "perplexity", "memory"),
    ("identical logits", "identical_logits", "general_text"),
    ("exposures", "exposures_per_fact", "all"),
)


def place(gate: bool, share: float) -> Path:
    """The file of a point."""
    return RESULTS / f"{'gate' if gate else 'no-gate'}-{share:g}.json"


def run(gate: bool, share: float) -> None:
    """Teaches and scores one point."""
    facts = common.demo_facts(FACTS)
    known = random.Random(SEED).sample(public_questions(), KNOWN)
    config = TeachConfig().with_flags(
        gate=gate, protect="shipped" if share else None, protect_share=share or 0.3, recall_sample=64, seed=SEED
    )
    teacher = common.teach(facts, config)
    rows, examples = score_model(
        teacher.model, teacher.tokenizer, facts=facts, known=known, text=common.held_out_text(), phrasings=1,
        max_text_tokens=TEXT_TOKENS, seed=SEED, quiet=True,
    )  # fmt: skip
    marks = teacher.memory.pool.protected
    protected = 0 if marks is None else int(marks.sum())
    rows += cost_rows(teacher.report, len(facts), str(teacher.device))
    settings = {"facts": FACTS, "share": share, "protected_slots": protected, **config.flags()}
    write_results(place(gate, share), Results(environment("cpu"), settings, rows, teacher.report.curve, examples))


def table(points: dict[tuple[bool, float], Results]) -> str:
    """The figures, with their intervals."""
    rows = []
    for (gate, share), results in points.items():
        cells = [common.row_with_interval(results.find(metric, split)) for _, metric, split in COLUMNS]
        rows.append(["yes" if gate else "no", f"{share:g}", *cells])
    before = next(iter(points.values()))
    known, perplexity = before.find("known_facts", "backbone"), before.find("perplexity", "backbone")
    note = (
        f"{FACTS} facts, seed {SEED}; {KNOWN} known questions, {TEXT_TOKENS:,} tokens of text; 95 % intervals. The "
        f"backbone: known facts {common.row_with_interval(known)}, perplexity {common.row_with_interval(perplexity)}."
    )
    shown = common.markdown_table(["gate", "protected share", *(name for name, *_ in COLUMNS)], rows)
    return f"{note}\n\n![the trade-off](curve.png)\n\n{shown}\n"


def draw(points: dict[tuple[bool, float], Results]) -> None:
    """Recall, known facts and perplexity against the protected share."""
    pyplot = common.pyplot()
    panels = (
        ("recall", (("recall", "taught", "o-"), ("recall", "unseen_phrasing", "o--"))),
        ("known facts", (("known_facts", "memory", "o-"),)),
        ("perplexity", (("perplexity", "memory", "o-"),)),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for colour, gate in (("#0072B2", True), ("#D55E00", False)):
            for metric, split, style in lines:
                there = [(share, r.find(metric, split)) for (g, share), r in points.items() if g is gate]
                drawn = sorted((share, row.value) for share, row in there if row is not None)
                label = f"{'gate' if gate else 'no gate'}{', never taught phrasings' if '--' in style else ''}"
                axis.plot(*zip(*drawn, strict=True), style, color=colour, label=label) if drawn else None
        axis.set(title=title, xlabel="share of slots protected")
        axis.grid(alpha=0.3)
    before = [r for r in points.values()][0]
    for axis, metric in zip(axes[1:], ("known_facts", "perplexity"), strict=True):
        row = before.find(metric, "backbone")
        if row is not None:
            axis.axhline(row.value, color="#767676", ls=":", label="backbone")
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=8)
    figure.savefig(RESULTS / "curve.png", dpi=130)


def main() -> None:
    """Runs the points that are missing, then draws all there are."""
    draw_only = common.drawing_parser(__doc__).parse_args().draw
    wanted = [(gate, share) for gate in (False, True) for share in SHARES]
    for gate, share in wanted:
        if not draw_only and not place(gate, share).exists():
            run(gate, share)
    points = {each: read_results(place(*each)) for each in wanted if place(*each).exists()}
    if points:
        atomic_write_text(RESULTS / "table.md", table(points))
        draw(points)


if __name__ == "__main__":
    common.start(main)
