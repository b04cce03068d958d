"""The facts' API: what is stored, edits, imports with their progress, scores, and every refusal as OpenAI has it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from helpers.editing import FACTS, NEW
from helpers.serving import client, running
from memlayers.data.fact_rows import row_of
from memlayers.evaluation.results import Results, Row, write_results
from memlayers.inference.record import CurvePoint
from memlayers.serving import facts_requests
from memlayers.serving.served import Served

AT = "/v1/memories/codes"


def served(api: TestClient) -> Served:
    found: Served = api.app.state.memories["codes"]  # type: ignore[attr-defined]
    return found


def undone(api: TestClient, times: int = 1) -> None:
    for _ in range(times):
        assert api.post(f"{AT}/undo").status_code == 200
    assert served(api).state.facts == tuple(FACTS)


def events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events, whose names are their types."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_memories_and_their_facts_are_listed_searched_and_paged(api: TestClient):
    listed = api.get("/v1/memories").json()
    assert [each["id"] for each in listed["data"]] == ["codes"]  # no bare backbone
    assert listed["data"][0] | {"version": 0} == {
        "id": "codes", "object": "memory", "version": 0, "facts": 7, "editable": True, "reason": None, "waiting": 0
    }  # fmt: skip
    assert api.get(AT).json() == listed["data"][0]
    everything = api.get(f"{AT}/facts").json()
    assert [fact["id"] for fact in everything["data"]] == [fact.id for fact in FACTS]
    assert everything["data"][0]["questions"] == list(FACTS[0].questions) and not everything["has_more"]
    assert [each["id"] for each in api.get(f"{AT}/facts", params={"q": "ADA food"}).json()["data"]] == ["ada-2"]
    assert api.get(f"{AT}/facts", params={"subject": "ada"}).json()["total"] == 2
    assert api.get(f"{AT}/facts", params={"q": "nothing like it"}).json()["data"] == []
    first = api.get(f"{AT}/facts", params={"limit": 5}).json()
    assert first["has_more"] and first["total"] == 7 and first["last_id"] == "eve"
    second = api.get(f"{AT}/facts", params={"limit": 5, "after": "eve"}).json()
    assert [each["id"] for each in second["data"]] == ["fay", "ada-2"] and not second["has_more"]


def test_a_fact_is_added_corrected_forgotten_and_each_is_undone(api: TestClient):
    start = served(api).state.version
    row = {key: value for key, value in row_of(NEW).items() if key != "id"}
    added = api.post(f"{AT}/facts", json=row)
    assert added.status_code == 201 and added.json()["version"] == start + 1
    made = added.json()["facts"][0]["id"]
    sources = [{"document": "codes.csv", "evidence": "teal", "row": 3, "column": "code"}]
    corrected = api.patch(f"{AT}/facts/{made}", json={"answer": "teal", "aliases": ["dark cyan"], "sources": sources})
    assert corrected.status_code == 200 and corrected.json()["kind"] == "update"
    fact = api.get(f"{AT}/facts/{made}").json()
    assert (fact["answer"], fact["aliases"], fact["questions"]) == ("teal", ["dark cyan"], list(NEW.questions))
    assert fact["sources"][0]["place"] == "codes.csv, row 3, column code"
    assert [(edit["kind"], edit["undone"]) for edit in fact["edits"]] == [("update", False), ("add", False)]
    noted = api.patch(f"{AT}/facts/{made}", json={"sources": []})
    assert noted.json()["kind"] == "sources" and api.get(f"{AT}/facts/{made}").json()["sources"] == []
    forgotten = api.delete(f"{AT}/facts/{made}")
    assert forgotten.json()["kind"] == "forget" and api.get(f"{AT}/facts/{made}").status_code == 404
    journal = api.get(f"{AT}/journal", params={"fact": made}).json()
    assert [each["kind"] for each in journal["data"]] == ["forget", "sources", "update", "add"]
    assert journal["undoable"] == start + 4 == journal["version"]
    late = api.post(f"{AT}/undo", json={"number": start + 3})
    assert late.status_code == 409 and late.json()["error"]["code"] == "not_the_last_edit"
    taken = api.post(f"{AT}/undo", json={"number": start + 4})
    assert (taken.json()["kind"], taken.json()["undone"]) == ("undo", "forget")
    undone(api, 3)
    page = api.get(f"{AT}/journal", params={"limit": 2}).json()
    assert page["has_more"] and all(each["kind"] == "undo" for each in page["data"])
    next_page = api.get(f"{AT}/journal", params={"before": page["data"][-1]["number"]}).json()
    assert next_page["data"][0]["number"] == page["data"][-1]["number"] - 1


def test_a_fact_of_subject_relation_and_answer_gets_its_questions(api: TestClient):
    row = {"subject": "Gus Orr", "relation": "code", "answer": "amber"}
    added = api.post(f"{AT}/facts", json={"facts": [row]}).json()
    fact = added["facts"][0]
    assert fact["id"] == "gus-orr.code" and len(fact["questions"]) > 1 and fact["unseen_questions"]
    assert fact["sources"] == [] and all("Gus Orr" in question for question in fact["questions"])
    both = api.delete(f"{AT}/facts", params={"id": ["bob", "cid"], "subject": "Gus Orr"}).json()
    assert set(both["ids"]) == {"bob", "cid", fact["id"]}
    undone(api, 2)


def test_aliases_are_listed_added_and_removed(api: TestClient):
    added = api.post(f"{AT}/aliases", json={"subject": "Bob", "aliases": ["Robert Quill"]})
    assert added.status_code == 201 and added.json()["evidence"]["added"] == ["Robert Quill"]
    assert api.get(f"{AT}/aliases", params={"subject": "bob"}).json()["data"] == [
        {"object": "memory.aliases", "subject": "Bob", "aliases": ["Robert Quill"]}
    ]
    removed = api.delete(f"{AT}/aliases", params={"subject": "Bob", "alias": ["Robert Quill"]})
    assert removed.json()["evidence"]["removed"] == ["Robert Quill"] and api.get(f"{AT}/aliases").json()["data"] == []
    undone(api, 2)


def test_every_refusal_is_openais_error_object_without_a_path(api: TestClient, monkeypatch: pytest.MonkeyPatch):
    fact = row_of(NEW)
    wrong: list[tuple[int, str, str, dict[str, Any]]] = [
        (404, "GET", "/v1/memories/nobody", {}),
        (404, "GET", "/v1/memories/codes:bare/facts", {}),
        (404, "GET", f"{AT}/facts/nobody", {}),
        (404, "PATCH", f"{AT}/facts/nobody", {"json": {"answer": "x"}}),
        (404, "DELETE", f"{AT}/facts/nobody", {}),
        (400, "GET", f"{AT}/facts?after=nobody", {}),
        (400, "POST", f"{AT}/facts", {"json": {}}),
        (400, "POST", f"{AT}/facts", {"json": {"facts": []}}),
        (400, "POST", f"{AT}/facts", {"json": {"facts": [fact], "id": "x"}}),
        (400, "POST", f"{AT}/facts", {"json": {**fact, "colour": 1}}),
        (400, "POST", f"{AT}/facts", {"json": {"facts": [fact, {"subject": "?", "relation": "b", "answer": "c"}]}}),
        (400, "POST", f"{AT}/facts", {"json": row_of(FACTS[0])}),  # is stored
        (400, "PATCH", f"{AT}/facts/bob", {"json": {"colour": "x"}}),
        (400, "PATCH", f"{AT}/facts/bob", {"json": {"aliases": []}}),
        (400, "PATCH", f"{AT}/facts", {"json": fact}),  # is not stored
        (400, "DELETE", f"{AT}/facts", {}),
        (400, "DELETE", f"{AT}/facts?subject=Nobody", {}),
        (400, "POST", f"{AT}/aliases", {"json": {"subject": "Bob"}}),
        (400, "POST", f"{AT}/aliases", {"json": {"subject": "Bob", "aliases": ["Ada"]}}),
        (400, "DELETE", f"{AT}/aliases?subject=Bob&alias=Rob", {}),
        (400, "POST", f"{AT}/undo", {"json": {"number": "last"}}),
        (400, "POST", f"{AT}/import", {}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.exe", b"MZ")}}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.csv", b"")}}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.csv", b"name,code\n")}}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.xlsx", b"PK\x03\x04nothing")}}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.jsonl", b'{"question": "Who?", "answer": ""}\n')}}),
        (400, "POST", f"{AT}/import", {"files": {"file": ("x.csv", b"name,code\na,b")}, "data": {"subject": "who"}}),
    ]
    before = served(api).state
    for status, method, path, rest in wrong:
        answer = api.request(method, path, **rest)
        assert (answer.status_code, path) == (status, path), answer.text
        told = answer.json()["error"]
        assert set(told) == {"message", "type", "param", "code"} and told["message"]
        assert "\n" not in told["message"] and not any(each in answer.text for each in ("/tmp", "/served", "Traceback"))
    assert served(api).state is before
    monkeypatch.setattr(facts_requests, "MOST_WAITING", 1)
    hold = threading.Event()
    queued = served(api).edit(lambda memory: hold.wait(30) and None)  # type: ignore[arg-type, func-returns-value]
    busy = api.post(f"{AT}/undo")
    hold.set()
    queued.result()
    assert busy.status_code == 429 and busy.json()["error"]["type"] == "rate_limit_error"
    assert busy.headers["retry-after"]
    monkeypatch.setattr(served(api), "fixed", "opened to be read")
    fixed = api.post(f"{AT}/undo")
    assert fixed.status_code == 409 and fixed.json()["error"]["message"] == "codes: opened to be read"
    assert api.get(AT).json()["reason"] == "opened to be read"


def test_a_table_is_learned_and_tells_its_progress(api: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("memlayers.serving.imports.PART", 1)
    start = served(api).state.version
    table = {"file": ("staff codes.csv", b"name,room,code\nGus Orr,7,amber\nHal Ode,9,\n")}
    form = {"columns": "code"}
    dry = api.post(f"{AT}/import", files=table, data={**form, "dry_run": "true"}).json()
    assert (dry["subject"], dry["columns"], dry["added"]) == ("name", ["name", "room", "code"], 1)
    assert dry["left_out"] == {"empty cell": 1} and dry["examples"][0]["answer"] == "amber"
    assert served(api).state.version == start
    told = api.post(f"{AT}/import", files=table, data=form)
    assert told.headers["content-type"].startswith("text/event-stream")
    read, progress, done = events(told.text)
    assert [each["type"] for each in (read, progress, done)] == ["read", "progress", "done"]
    assert (read["total"], progress["done"], progress["kind"], progress["subjects"]) == (1, 1, "add", ["Gus Orr"])
    assert progress["version"] == done["version"] == start + 1 and done["refused"] == []
    fact = served(api).state.fact("gus-orr.code")
    assert fact is not None and fact.sources[0].place == "staff codes.csv, row 2, column code"
    again = events(api.post(f"{AT}/import", files=table, data=form).text)
    assert [each["type"] for each in again] == ["read", "done"] and again[0]["unchanged"] == 1
    changed = {"file": ("staff codes.csv", b"name,code\nHal Ode,teal\n")}
    steps = events(api.post(f"{AT}/import", files=changed).text)
    assert [each["kind"] for each in steps[1:-1]] == ["forget", "add"] and steps[-1]["version"] == start + 3
    undone(api, 3)


def test_a_document_is_learned_by_rules(api: TestClient):
    note = {"file": ("note.txt", b"The company newsletter is called The Bilge Pump.\n")}
    refused = api.post(f"{AT}/import", files=note)
    assert refused.status_code == 400 and "states no facts" in refused.json()["error"]["message"]
    told = events(api.post(f"{AT}/import", files=note, data={"about": "Tarnholt Boatyard"}).text)
    assert (told[0]["subject"], told[0]["columns"]) == (None, []) and told[-1]["done"] == 1
    (fact,) = (fact for fact in served(api).state.facts if fact.subject == "Tarnholt Boatyard")
    assert (fact.answer, fact.sources[0].document, fact.sources[0].start) == ("The Bilge Pump", "note.txt", 0)
    undone(api)


def test_a_fact_that_the_memory_does_not_take_is_told_and_the_others_are_learned(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
):
    rows = [row_of(NEW), {**row_of(NEW), "id": "gus-2", "questions": ["Who is it?"], "relation": "who"}]
    file = {"file": ("more.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())}
    from memlayers.editing.memory import Memory

    add = Memory.add

    def picky(self: Memory, facts: Any) -> Any:
        if any(fact.id == "gus-2" for fact in facts):
            from memlayers.editing.report import EditRefused, EditReport

            raise EditRefused(f"{self.folder}: refused, as it would change another answer", EditReport(0, "add", ()))
        return add(self, facts)

    monkeypatch.setattr(Memory, "add", picky)
    told = events(api.post(f"{AT}/import", files=file).text)
    assert [each["done"] for each in told[1:]] == [1, 2, 2]
    assert told[-1]["refused"] == [
        {"id": "gus-2", "subject": "Gus Orr", "message": "codes: refused, as it would change another answer"}
    ]
    undone(api)


def test_the_scores_are_those_of_teaching_and_of_the_last_evaluation(api: TestClient):
    found = api.get(f"{AT}/scores").json()
    assert found["teaching"]["recall"] == 1.0 and found["teaching"]["curve"] and found["evaluation"] is None
    folder = served(api).folder
    assert folder is not None
    rows = [Row("recall", "taught", 0.97, 14, 0.9, 1.0)]
    write_results(folder / "scores.json", Results({}, {}, rows, [CurvePoint(1.0, 0.5)]))
    found = api.get(f"{AT}/scores").json()
    assert found["evaluation"]["file"] == "scores.json" and found["evaluation"]["curve"][0]["recall"] == 0.5
    assert found["evaluation"]["rows"][0]["value"] == 0.97 and str(Path("/")) + "tmp" not in json.dumps(found)
    (folder / "scores.json").unlink()


def test_a_client_that_goes_away_ends_its_import_after_the_edit_under_way(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("memlayers.serving.imports.PART", 1)
    start = served(api).state.version
    rows = "".join(f"Person {name},{name}\n" for name in "Abcdefgh")
    with (
        running(api.app.state.memories) as address,  # type: ignore[attr-defined]
        client().stream("POST", f"{address}{AT}/import", files={"file": ("many.csv", f"name,code\n{rows}")}) as answer,
    ):
        seen = next(line for line in answer.iter_lines() if line.startswith("event: progress"))
        assert seen
        answer.close()
        until = time.monotonic() + 30
        while served(api).waiting and time.monotonic() < until:
            time.sleep(0.05)
        done = served(api).state.version - start
        time.sleep(0.3)
        assert served(api).waiting == 0 and served(api).state.version - start == done
    assert 1 <= done < 8
    undone(api, done)
