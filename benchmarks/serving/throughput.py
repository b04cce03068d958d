"""What a memory costs a server: requests per second and time to first token, against the bare backbone's server.

`memlayers serve` of a memory on pocket and `transformers serve` of pocket alone, each a process of its own, take turns
within one run; the one that is not asked is idle. So many clients ask at once, each its next question as soon as it is
answered: questions that do not open the memory's gate, then stored facts' questions, which do. Greedy, up to 32 tokens.
Requests per second are of whole answers, time to first token is of streams: from sending a request to its first
characters, so it has the wait behind the other clients in it. Figures are medians of the turns' ratios.

Leaves ``benchmarks/results/serving/throughput.json``. Example: ``python -m benchmarks.serving.throughput`` (10 minutes
with the teaching of the memory; without it 5)
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import httpx

from benchmarks import common
from benchmarks.serving.servers import (
    WORK,
    Server,
    closed_questions,
    memlayers_serve,
    opening_questions,
    servers_parser,
    taught_memory,
    transformers_serve,
)
from memlayers.utils.environment import environment
from memlayers.utils.errors import WorkError

OUT = common.RESULTS / "serving" / "throughput.json"
TOKENS = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """One server asked all questions of a kind.

    Attributes:
        seconds: for all of them.
        first: seconds to the first characters, per question; of streams alone.
        tokens: of all answers.
        sources: how many answers each source gave, where a server says so.
    """

    seconds: float
    first: list[float]
    tokens: int
    sources: dict[str, int]


async def ask(server: Server, questions: Sequence[str], clients: int, *, stream: bool) -> Turn:
    """Has so many clients ask the questions of one server."""
    waiting, first, sources, tokens = iter(questions), list[float](), dict[str, int](), 0
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(client: httpx.AsyncClient, question: str) -> dict[str, Any]:
        body = {
            "model": server.model, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS,
            "temperature": 0, "stream": stream,
        }  # fmt: skip
        if not stream:
            response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            return dict(response.json())
        began, said, last = time.perf_counter(), False, ""
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    last = line
                    if not said and '"content":"' in line:
                        said = True
                        first.append(time.perf_counter() - began)
        return dict(json.loads(last.removeprefix("data: ")))

    async def asking(client: httpx.AsyncClient) -> None:
        nonlocal tokens
        for question in waiting:
            answer = await one(client, question)
            tokens += answer["usage"]["completion_tokens"]
            source = answer.get("memlayers", {}).get("source")
            if source is not None:
                sources[source] = sources.get(source, 0) + 1

    async with httpx.AsyncClient(base_url=server.address, timeout=300, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(asking(client) for _ in range(clients)))
        return Turn(time.perf_counter() - began, first, tokens, sources)


def measured(own: Server, bare: Server, questions: Sequence[str], clients: int, rounds: int) -> dict[str, Any]:
    """Both servers in turns, whole answers and streams."""
    per_second, to_first, figures = [], [], list[dict[str, Any]]()
    sources: dict[str, int] = {}
    for number in range(rounds + 1):  # the first is not counted
        order = (own, bare) if number % 2 else (bare, own)
        whole = {id(each): asyncio.run(ask(each, questions, clients, stream=False)) for each in order}
        streamed = {id(each): asyncio.run(ask(each, questions, clients, stream=True)) for each in order}
        if not number:
            continue
        per_second.append(whole[id(bare)].seconds / whole[id(own)].seconds)
        first = [statistics.median(streamed[id(each)].first) for each in (own, bare)]
        to_first.append(first[0] / first[1])
        sources = whole[id(own)].sources
        figures.append(
            {
                "own requests per second": round(len(questions) / whole[id(own)].seconds, 2),
                "bare requests per second": round(len(questions) / whole[id(bare)].seconds, 2),
                "own seconds to first": round(first[0], 4), "bare seconds to first": round(first[1], 4),
                "own tokens": whole[id(own)].tokens, "bare tokens": whole[id(bare)].tokens,
            }
        )  # fmt: skip
    return {
        "questions": len(questions), "clients": clients, "rounds": rounds,
        "requests per second, ratio": round(statistics.median(per_second), 4),
        "requests per second, least and most": [round(min(per_second), 4), round(max(per_second), 4)],
        "time to first token, ratio": round(statistics.median(to_first), 4),
        "time to first token, least and most": [round(min(to_first), 4), round(max(to_first), 4)],
        "sources": sources, "turns": figures,
    }  # fmt: skip


def main() -> None:
    """Measures, prints and writes."""
    parser = servers_parser(__doc__, OUT)
    parser.add_argument("--questions", type=int, default=96, help="of each kind, per turn (default: 96)")
    parser.add_argument("--clients", type=int, default=16, help="default: 16")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    arguments = parser.parse_args()
    memory = taught_memory(arguments.memory, arguments.facts)
    kinds = {
        "gate closed": closed_questions(memory, arguments.questions),
        "gate opens": list(islice(cycle(opening_questions(memory)), arguments.questions)),
    }
    found: dict[str, Any] = {}
    with memlayers_serve(memory, WORK / "own.log") as own, transformers_serve(WORK / "bare.log") as bare:
        for kind, questions in kinds.items():
            found[kind] = measured(own, bare, questions, arguments.clients, arguments.rounds)
            print(kind, json.dumps({name: value for name, value in found[kind].items() if name != "turns"}), flush=True)
    if found["gate closed"]["sources"] != {"backbone": len(kinds["gate closed"])}:
        raise WorkError(
            f"a question that should not have was answered by the memory: {found['gate closed']['sources']}"
        )
    common.write_json(arguments.out, {**found, "environment": environment("cpu")})


if __name__ == "__main__":
    common.start(main)
