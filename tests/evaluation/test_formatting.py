from __future__ import annotations

import pytest

from memlayers.evaluation.formatting import format_value


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("recall", 0.996, "99.6 %"),
        ("recall", 0.99996, "99.996 %"),
        ("recall", 1.0, "100.0 %"),
        ("recall", 0.0, "0.0 %"),
        ("recall", 0.0002, "0.020 %"),
        ("perplexity", 8.3, "8.300"),
        ("perplexity", 4100.0, "4,100"),
        ("perplexity", 3_500_000.0, "3,500,000"),
        ("teach_seconds", 59.2, "59.2 s"),
        ("teach_seconds", 59.9, "1 min 0 s"),
        ("teach_seconds", 83.2, "1 min 23 s"),
        ("peak_memory_bytes", 1_213_000_000, "1.21 GB"),
        ("peak_memory_bytes", 512_000_000, "512 MB"),
        ("exposures_per_fact", 7.6, "7.60"),
        ("auroc", 0.9, "0.900"),
    ],
)
def test_format_value(metric: str, value: float, text: str):
    assert format_value(metric, value) == text


def test_a_share_just_short_of_full_is_never_shown_as_full():
    for k in range(1, 200_000, 997):
        shown = format_value("recall", 1 - k / 10_000_000)
        assert shown != "100.0 %" and float(shown.split()[0]) <= 100
