"""Sources learned by a memory that is there, and by a new one, on the tiny backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from helpers.editing import CONFIG, FACTS
from memlayers.certificate import learn as learning
from memlayers.certificate.learn import CERTIFICATE_FILE, PAGE_FILE, learn
from memlayers.config.teach import TeachConfig
from memlayers.data.answers import exact_match
from memlayers.data.fact_files import write_facts
from memlayers.data.facts import Fact, Source
from memlayers.editing.journal import digests, read_journal
from memlayers.editing.memory import load_memory
from memlayers.inference.folder import stored_facts
from memlayers.utils.errors import InputError


@pytest.fixture
def folder(taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    edits = replace(CONFIG, refuse=False)  # the tiny backbone's
    monkeypatch.setattr(learning, "load_memory", partial(load_memory, edits=edits))
    return Path(shutil.copytree(taught_folder, tmp_path / "memory"))


def _written(path: Path, facts: Sequence[Fact], shift: int = 0) -> Path:
    """A facts file whose facts were found in notes.txt."""
    sources = [Source("notes.txt", fact.answer, 10 * i + shift, 10 * i + shift + len(fact.answer))
               for i, fact in enumerate(facts)]  # fmt: skip
    write_facts(path, [replace(fact, sources=(source,)) for fact, source in zip(facts, sources, strict=True)])
    return path


def test_a_memory_is_told_what_has_changed_and_nothing_else(folder: Path, tmp_path: Path):
    notes = tmp_path / "facts.jsonl"
    memory, made = learn([_written(notes, FACTS)], folder)
    assert made.changes == {"added": 0, "updated": 0, "moved": 7, "unchanged": 0, "forgotten": 0}
    assert [fact.sources[0].document for fact in stored_facts(folder)] == ["notes.txt"] * 7
    right = [exact_match(each.asked[0].answer, each.fact.answers) for each in made.facts[:6]]
    assert [each.answered for each in made.facts] == [*right, False] and any(right) and not made.facts[6].asked
    assert made.summary["recall"]["value"] == pytest.approx(sum(right) / 6) and made.summary["recall"]["n"] == 6

    before = digests(folder)
    _, made = learn([notes], folder)  # the same again
    assert made.changes["unchanged"] == 7 and digests(folder) == before

    changed = [*FACTS[:2], replace(FACTS[2], answer="lime"), *FACTS[4:]]
    slots = read_journal(folder)[0][-1].number
    _, made = learn([_written(notes, changed, shift=3)], folder)
    records = read_journal(folder)[0][slots:]
    assert [(record.kind, record.ids) for record in records] == [
        ("forget", ("dot",)),
        ("update", ("cid",)),
        ("sources", ("ada", "bob", "eve", "fay", "ada-2")),
    ]
    assert made.changes == {"added": 0, "updated": 1, "moved": 5, "unchanged": 0, "forgotten": 1}
    assert {fact.id: fact.answer for fact in stored_facts(folder)}["cid"] == "lime"
    said = json.loads((folder / CERTIFICATE_FILE).read_text(encoding="utf-8"))
    assert said["changes"] == made.changes and said["forgotten"] == ["dot"]
    assert "notes.txt" in (folder / PAGE_FILE).read_text(encoding="utf-8")


def test_a_new_memory_is_taught(chat_backbone: Path, general_file: Path, tmp_path: Path):
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), general_text=str(general_file), sub_keys=8, heads=2, top_k=3, key_dim=8,
        gate_steps=2, exposures=1, further=0, dtype="float32", device="cpu",
    )  # fmt: skip
    out = tmp_path / "memory"
    memory, made = learn([_written(tmp_path / "facts.jsonl", FACTS[:2])], out, config)
    assert made.changes["added"] == 2 and [each.fact.id for each in made.facts] == ["ada", "bob"]
    assert stored_facts(out) == list(memory.facts) and (out / PAGE_FILE).is_file()
    with pytest.raises(InputError, match=r"nothing\.md: no facts in 1 passages \(1 no rule matched\)"):
        (tmp_path / "nothing.md").write_text("It rained.\n")
        learn([tmp_path / "nothing.md"], out, config)
