"""What a server counts, in Prometheus' format; a registry of its own for each app."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from memlayers.serving.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What a server counts.

    Args:
        memories: what is served, by id.

    Attributes:
        active: requests for answers that are under way or wait.
    """

    def __init__(self, memories: Mapping[str, Served]) -> None:
        self._registry = CollectorRegistry()
        to: CollectorRegistry = self._registry
        self._requests = Counter(
            "memlayers_http_requests", "Requests, by route and status", ["method", "route", "status"], registry=to
        )
        self._seconds = Histogram(
            "memlayers_http_request_seconds", "From a request to the end of its answer", ["route"], buckets=_SECONDS,
            registry=to,
        )  # fmt: skip
        self._answers = Counter(
            "memlayers_answers",
            "Answers, by who gave them: memory, backbone or unknown",
            ["model", "source"],
            registry=to,
        )
        self._tokens = Counter("memlayers_answer_tokens", "Tokens of answers", ["model"], registry=to)
        self._answer_seconds = Histogram(
            "memlayers_answer_seconds", "From a request to its answer's last token", ["model", "source"],
            buckets=_SECONDS, registry=to,
        )  # fmt: skip
        self.active = Gauge("memlayers_active_requests", "Requests for answers under way or waiting", registry=to)
        to.register(_States(memories))
        ProcessCollector(registry=to)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that is over."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, model: str, source: str, tokens: int, seconds: float) -> None:
        """Counts an answer."""
        self._answers.labels(model, source).inc()
        self._tokens.labels(model).inc(tokens)
        self._answer_seconds.labels(model, source).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _States(Collector):
    """What the memories are now; read when it is asked for."""

    def __init__(self, memories: Mapping[str, Served]) -> None:
        self._memories = memories

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The version and the facts of each memory, and the edits that wait."""
        version = GaugeMetricFamily("memlayers_memory_version", "Number of the last edit", labels=["memory"])
        facts = GaugeMetricFamily("memlayers_memory_facts", "Stored facts", labels=["memory"])
        waiting = GaugeMetricFamily("memlayers_edits_waiting", "Edits under way or in the queue", labels=["memory"])
        for name, served in self._memories.items():
            if served.folder is not None:
                state = served.state
                version.add_metric([name], state.version)
                facts.add_metric([name], len(state.facts))
                waiting.add_metric([name], served.waiting)
        yield from (version, facts, waiting)
