"""How a figure is written for a reader: "99.6 %", "8.337", "1 min 23 s", "1.21 GB". No torch."""

from __future__ import annotations

_SHARES = frozenset(
    "recall recall_containment recall_generated teacher_forced_recall known_facts known_facts_containment known_lost "
    "qa_exact_match qa_containment identical_logits answered answered_by_memory fabricated fabricated_by_memory "
    "unchanged_answers".split()
)


def format_value(metric: str, value: float) -> str:
    """A figure as a person reads it: "99.6 %", "8.337", "1 min 23 s", "1.21 GB"."""
    if metric in _SHARES:
        return percent(value)
    if metric == "perplexity_change":
        return f"{100 * value:+.3f} %"
    if metric in ("first_token_seconds", "update_seconds"):
        return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"
    if metric in ("teach_seconds", "teach_cpu_seconds"):
        whole = round(value)
        return f"{value:.1f} s" if whole < 60 else f"{whole // 60:,} min {whole % 60} s"
    if metric == "bytes_per_fact" and value < 1e6:
        return f"{value:,.0f} bytes" if value < 1e4 else f"{value / 1e3:.0f} kB"
    if metric in ("peak_memory_bytes", "inference_bytes", "bytes_per_fact"):
        return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.{0 if value >= 1e8 else 1}f} MB"
    if metric == "teach_tokens":
        return f"{value:,.0f}"
    if metric == "exposures_per_fact":
        return f"{value:.2f}"
    if metric in ("auroc", "abstention_auroc"):
        return f"{value:.3f}" if value <= 0.9995 or value == 1.0 else f"{value:.5f}"  # 0.99990 is no 1.000
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:#,.4g}".rstrip(".")


def percent(value: float) -> str:
    """A share of 1 in per cent: "99.6 %", and more digits where one would show all or nothing."""
    # Rounding must not turn 99.96 % into a full score.
    shown = f"{100 * value:.1f}"
    if (shown == "100.0" and value < 1.0) or (shown == "0.0" and value > 0.0):
        shown = f"{100 * value:.3f}"
    return f"{shown} %"


def relative_change(before: float, after: float) -> str:
    """By how much a positive figure changed: "+0.34 %", or "2.5 times"."""
    ratio = after / before
    return f"{ratio:,.1f} times" if ratio > 2 else f"{100 * (ratio - 1):+.2f} %"
