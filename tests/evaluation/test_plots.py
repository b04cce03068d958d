from __future__ import annotations

from memlayers.evaluation.plots import spread_apart, track_of
from memlayers.evaluation.results import Results, Row
from memlayers.inference.record import CurvePoint

RESULTS = Results(
    environment={},
    config={},
    rows=[
        Row("recall", "backbone", 0.034, 500, 0.02, 0.05),
        Row("recall", "taught", 0.996, 500, 0.986, 0.999),
        Row("perplexity", "backbone", 8.309, 41222),
        Row("perplexity", "memory", 8.337, 41222),
        Row("exposures_per_fact", "all", 7.6, 500),
    ],
    curve=[CurvePoint(2, 0.31, 8.32, 0.94), CurvePoint(4, 0.74)],
)


def test_the_line_goes_from_the_backbone_to_the_final_evaluation():
    track = track_of(RESULTS, "recall", "taught")
    assert track.line() == [(0.0, 0.034), (2, 0.31), (4, 0.74), (7.6, 0.996)]
    perplexity = track_of(RESULTS, "perplexity", "memory")  # not measured at 4
    assert perplexity.line() == [(0.0, 8.309), (2, 8.32), (7.6, 8.337)]


def test_labels_are_moved_apart():
    assert spread_apart([0.99, 0.5, 0.1]) == [0.99, 0.5, 0.1]
    for heights in ([1.0, 0.99, 0.98], [0.1, 0.05, 0.0], [0.0, 0.0, 0.0]):
        placed = spread_apart(heights)
        assert all(a - b >= 0.16 - 1e-9 for a, b in zip(placed, placed[1:], strict=False))
        assert min(placed) >= 0.05 and max(placed) <= 1.0


def test_known_facts_watched_on_a_sample_are_not_joined_to_the_full_set():
    rows = [Row("known_facts", "backbone", 0.97, 1000), Row("known_facts", "memory", 0.96, 1000)]
    curve = [CurvePoint(1, 0.3, None, 0.98), CurvePoint(2, 0.6, None, 0.99)]
    assert track_of(Results({}, {}, rows, curve), "known_facts", "memory").line() == [(1, 0.98), (2, 0.99)]
    assert track_of(Results({}, {}, rows), "known_facts", "memory").line() == [(0.0, 0.97), (1.0, 0.96)]
