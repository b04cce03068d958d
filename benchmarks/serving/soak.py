"""Whether a server holds: many clients at once while a fact is edited every second, and a kill in the end.

`memlayers serve` of a copy of a memory on pocket. So many clients ask one after another, every other question for the
fact that is edited, the rest for what the backbone knows. Each answer is checked against the version that it says it
read: the answer given, and the fact named, must be that version's, and a request that began after an edit was
acknowledged must read that edit or a later one. Edits are sent whether or not those before are made, so that their
queue fills where they take longer; what is refused then, with a time to try again, is counted apart. An edit's time is
from its request to the first answer that uses it, with its wait in the queue (`--every 30` has none wait); beside it
what the server says that making and saving it took. The process's memory is read every second; its growth is the
median of the last fifth less that of the second. In the end the server is killed (SIGKILL) in the middle of an edit
while it is asked, and started again: it must answer as of the last edit that was acknowledged, or of the one under way.

Leaves ``benchmarks/results/serving/soak.json``. Example: ``python -m benchmarks.serving.soak --seconds 300`` (8 min)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import common
from benchmarks.serving.servers import WORK, Server, closed_questions, memlayers_serve, servers_parser, taught_memory
from memlayers.data.facts import Fact
from memlayers.inference.folder import stored_facts
from memlayers.utils.environment import environment

OUT = common.RESULTS / "serving" / "soak.json"
TOKENS, ANSWERS = 32, 5
"""Of an answer; and how many answers the fact is given in turn, those of other facts of its relation."""


@dataclass
class Soak:
    """What is seen of a server.

    Attributes:
        server: which.
        fact: that is edited.
        known: questions that the backbone answers.
        others: what the fact is edited to.
        answers: of the fact, by the memory's version.
        acknowledged: the version of the last edit that was acknowledged.
        until: when it ends, by `time.monotonic`.
        asked: answers that came, by source.
        refused: edits and questions that were to be sent again later, by status.
        errors: what went wrong, by kind.
        wrong: answers that are not their version's.
        unchecked: answers of the memory, checked in the end: version, answer, and that of the fact named.
        edits: seconds of each, to the first answer that uses it.
        made: seconds of each in the server.
        held: bytes of the process, once a second.
    """

    server: Server
    fact: Fact
    known: list[str]
    others: list[str]
    until: float
    answers: dict[int, str] = field(default_factory=dict)
    acknowledged: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unchecked: list[tuple[int, str, str]] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    async def ask(self, client: httpx.AsyncClient, question: str) -> dict[str, Any] | None:
        """One answer; None where there was an error."""
        body = {
            "model": self.server.model, "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS,
            "temperature": 0,
        }  # fmt: skip
        try:
            response = await client.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            self.errors[type(error).__name__] += 1
            return None
        if response.status_code != 200:
            self.not_done("answer", response)
            return None
        return dict(response.json())

    def not_done(self, what: str, response: httpx.Response) -> None:
        """Counts a response that is none: refused for now, or an error."""
        if response.status_code in (429, 503) and int(response.headers.get("retry-after", 0)) > 0:
            self.refused[f"{what}: {response.status_code}"] += 1
        else:
            self.errors[f"{what}: {response.status_code}: {response.text[:200]}"] += 1

    async def asking(self, client: httpx.AsyncClient, number: int) -> None:
        """One client's questions."""
        turn = number
        while time.monotonic() < self.until:
            turn += 1
            edited = turn % 2 == 0
            least = self.acknowledged
            answer = await self.ask(client, self.fact.questions[0] if edited else self.known[turn % len(self.known)])
            if answer is None:
                continue
            own = answer["memlayers"]
            self.asked[own["source"]] += 1
            if own["version"] < least:
                self.wrong.append(f"version {own['version']} after {least} was acknowledged")
            if edited and own["source"] == "memory":
                named = own["facts"][0]["answer"] if own["facts"] else ""
                self.unchecked.append((own["version"], answer["choices"][0]["message"]["content"], named))

    async def edit(self, client: httpx.AsyncClient, answer: str) -> None:
        """One edit, and the first question after it."""
        began, path = time.monotonic(), f"/v1/memories/{self.server.model}/facts/{self.fact.id}"
        response = await client.patch(path, json={"answer": answer})
        if response.status_code != 200:
            self.not_done("edit", response)
            return
        told = response.json()
        version = int(told["version"])
        self.answers[version], self.acknowledged = answer, max(version, self.acknowledged)
        seen = await self.ask(client, self.fact.questions[0])
        self.edits.append(time.monotonic() - began)
        self.made.append(told["seconds"] + told["saving"])
        if seen is not None and seen["memlayers"]["version"] < version:
            self.wrong.append(f"version {seen['memlayers']['version']} after the edit to {version}")

    async def editing(self, client: httpx.AsyncClient, every: float) -> None:
        """An edit every so many seconds, whether or not those before are made; returns when all are."""
        sent = list[asyncio.Task[None]]()
        while time.monotonic() < self.until:
            sent.append(asyncio.create_task(self.edit(client, self.others[(len(sent) + 1) % len(self.others)])))
            await asyncio.sleep(every)
        for each in sent:
            try:
                await each
            except httpx.HTTPError as error:
                self.errors[f"edit: {type(error).__name__}"] += 1

    async def watching(self) -> None:
        """Reads the process's memory."""
        status = Path(f"/proc/{self.server.pid}/status")
        while time.monotonic() < self.until:
            self.held.append(int(status.read_text().split("VmRSS:")[1].split()[0]) * 1024)
            await asyncio.sleep(1)

    async def run(self, clients: int, every: float) -> None:
        """All of it at once."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients + 2)
        async with httpx.AsyncClient(base_url=self.server.address, timeout=300, limits=limits) as client:
            first = await self.ask(client, self.fact.questions[0])
            self.acknowledged = 0 if first is None else int(first["memlayers"]["version"])
            self.answers[self.acknowledged] = self.fact.answer
            work = [self.asking(client, number) for number in range(clients)]
            await asyncio.gather(*work, self.editing(client, every), self.watching())
        self.check()

    async def killed(self, clients: int, after: float) -> str:
        """Kills the server so many seconds after an edit was sent, while it is asked; the answer of that edit."""
        answer = next(each for each in self.others if each != self.answers[self.acknowledged])
        async with httpx.AsyncClient(base_url=self.server.address, timeout=60) as client:
            asking = [asyncio.create_task(self.ask(client, self.fact.questions[0])) for _ in range(clients)]
            path = f"/v1/memories/{self.server.model}/facts/{self.fact.id}"
            edit = asyncio.create_task(client.patch(path, json={"answer": answer}))
            await asyncio.sleep(after)
            os.kill(self.server.pid, signal.SIGKILL)
            await asyncio.gather(edit, *asking, return_exceptions=True)
        return answer

    def check(self) -> None:
        """Compares the memory's answers with those of their versions."""
        for version, said, named in self.unchecked:
            if not self.answers.get(version) == said == named:
                self.wrong.append(f"version {version} says {said!r} by {named!r}, not {self.answers.get(version)!r}")


def killed_and_asked(soak: Soak, folder: Path, arguments: argparse.Namespace) -> Counter[str]:
    """Kills servers in the middle of an edit each; what those that are started then answer by: the edit or before."""
    found, rng, counts = Counter[str](), random.Random(common.SEED), dict(soak.errors)
    for _ in range(arguments.kills):
        with memlayers_serve(folder, WORK / "killed.log") as server:
            soak.server = server
            after = rng.uniform(0, 3 * statistics.median(soak.made or [2.0]))  # answers are given meanwhile
            answer = asyncio.run(soak.killed(arguments.clients, after))
        with memlayers_serve(folder, WORK / "restarted.log") as server:
            body = {"model": server.model, "messages": [{"role": "user", "content": soak.fact.questions[0]}]}
            told = httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=60).json()
        version, said = told["memlayers"]["version"], told["choices"][0]["message"]["content"]
        if version == soak.acknowledged + 1:
            soak.answers[version], soak.acknowledged = answer, version
            found["the edit"] += 1
        else:
            found["before it"] += 1
        if version != soak.acknowledged or said != soak.answers[version]:
            soak.wrong.append(f"version {version} says {said!r} after a kill, not {soak.answers.get(version)!r}")
    soak.errors = Counter(counts)  # questions that a kill cut off are none
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = servers_parser(__doc__, OUT)
    parser.add_argument("--clients", type=int, default=64, help="default: 64")
    parser.add_argument("--seconds", type=float, default=300, help="default: 300")
    parser.add_argument("--every", type=float, default=1, help="seconds from one edit to the next (default: 1)")
    parser.add_argument("--kills", type=int, default=3, help="in the end (default: 3)")
    arguments = parser.parse_args()
    folder = WORK / "soaked"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(taught_memory(arguments.memory, arguments.facts), folder)
    with memlayers_serve(folder, WORK / "soak.log") as server:
        until = time.monotonic() + arguments.seconds
        first, *rest = stored_facts(folder)
        alike = dict.fromkeys(fact.answer for fact in rest if fact.relation == first.relation)
        others = [first.answer, *(answer for answer in alike if answer != first.answer)][:ANSWERS]
        soak = Soak(server, first, closed_questions(folder, 50), others, until)
        asyncio.run(soak.run(arguments.clients, arguments.every))
    kills = killed_and_asked(soak, folder, arguments)
    fifth = max(1, len(soak.held) // 5)
    early, late = soak.held[fifth : 2 * fifth] or soak.held, soak.held[-fifth:]
    found = {
        "clients": arguments.clients, "seconds": arguments.seconds, "answers": dict(soak.asked),
        "refused": dict(soak.refused), "errors": dict(soak.errors),
        "wrong versions": len(soak.wrong), "the first of them": soak.wrong[:5],
        "edits": len(soak.edits),
        "seconds from an edit to its first answer, median and most": [
            round(statistics.median(soak.edits), 3), round(max(soak.edits), 3),
        ] if soak.edits else [],
        "seconds of an edit in the server, median and most": [
            round(statistics.median(soak.made), 3), round(max(soak.made), 3),
        ] if soak.made else [],
        "killed in an edit, answering then as of": dict(kills),
        "MiB held, early and late": [round(statistics.median(each) / 2**20, 1) for each in (early, late)],
    }  # fmt: skip
    print(json.dumps(found))
    common.write_json(arguments.out, {**found, "environment": environment("cpu")})


if __name__ == "__main__":
    common.start(main)
