from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.editing import FACTS
from memlayers.config.teach import TeachConfig
from memlayers.editing.config import EditConfig
from memlayers.editing.edit import edit_under_way
from memlayers.editing.memory import Memory, load_memory
from memlayers.editing.report import EditReport
from memlayers.editing.slot_use import OtherReads, SlotUse, choose_slots
from memlayers.teaching.teach import teach_facts


@pytest.fixture
def use() -> SlotUse:
    """Three facts on a pool of eight slots."""
    found = SlotUse(8)
    for key, rows in (("a", [0, 1, 2]), ("b", [1, 2, 3]), ("c", [2, 7])):
        found.put(key, torch.tensor(rows), f"text of {key}")
    return found


def test_how_many_facts_read_each_slot(use: SlotUse):
    assert use.frequency.tolist() == [1, 2, 3, 1, 0, 0, 0, 1]
    assert use.frequency_of(torch.arange(8), ["a", "nobody"]).tolist() == [0, 1, 2, 1, 0, 0, 0, 1]
    assert use.frequency_of(torch.tensor([2, 7, 2]), []).tolist() == [3, 1, 3] and use.all_reads(["a"]) == 5
    use.put("a", torch.tensor([4]), "new text")
    use.drop("c")
    use.drop("c")
    assert use.frequency.tolist() == [0, 1, 1, 1, 1, 0, 0, 0]


def test_the_facts_that_read_most_of_what_moved(use: SlotUse):
    rows, moved = torch.tensor([1, 3, 7]), torch.tensor([1.0, 2.0, 1.5])
    assert use.most_moved(rows, moved, 5, []) == ["b", "c", "a"]
    assert use.most_moved(rows, moved, 1, ["b"]) == ["c"]
    assert use.most_moved(torch.tensor([5]), torch.tensor([1.0]), 5, []) == []
    assert use.most_moved(rows[:0], moved[:0], 5, []) == []
    keys, read = use.reading(rows, moved, ["b"])
    assert keys == ["a", "c"] and read.tolist() == [1.0, 1.5]
    assert use.reading(rows, moved, ["a", "b", "c"])[0] == []


def test_what_is_saved_is_known_again_where_the_text_is_the_same(use: SlotUse, tmp_path: Path):
    path = tmp_path / "use.safetensors"
    use.put_general([torch.tensor([0, 1]), torch.tensor([1, 5])])
    use.save(path, {"a", "b", "new"})
    again = SlotUse(8)
    again.load(path, {"a": "text of a", "b": "another text", "c": "text of c"})
    assert again.general.tolist() == [1, 2, 0, 0, 0, 1, 0, 0] and again.passages == 2
    assert list(again.rows) == ["a"] and again.frequency.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    path.write_bytes(b"nonsense")
    for damaged in (path, tmp_path / "nothing"):
        empty = SlotUse(8)
        empty.load(damaged, {"a": "text of a"})
        assert not empty.rows


def test_the_file_is_written_anew_where_it_lacks_more_than_a_hundredth_or_tells_of_a_fact_that_is_gone(tmp_path: Path):
    path, use = tmp_path / "use.safetensors", SlotUse(8)
    texts = {str(number): f"text of {number}" for number in range(200)}
    for key, text in texts.items():
        use.put(key, torch.tensor([int(key) % 8]), text)
    assert use.is_outdated(texts)
    use.save(path, texts)
    again = SlotUse(8)
    again.load(path, texts)
    assert not again.unsaved and not again.is_outdated(texts)
    assert again.is_outdated(list(texts)[1:])
    for key, outdated in (("3", False), ("4", False), ("4", False), ("5", True)):
        again.put(key, torch.tensor([1]), "another text")
        assert again.is_outdated(texts) is outdated
    again.load(path, texts | {"3": "another text"})
    assert again.unsaved == {"3"}


def test_slots_specific_to_an_edit_are_chosen_first():
    rows, counts = torch.tensor([1, 2, 5, 6]), torch.tensor([4, 4, 1, 3])
    beside = OtherReads(torch.tensor([10, 1, 0, 10]), 10, 21, 8)
    assert choose_slots(rows, counts, beside, "all", 1).tolist() == [1, 2, 5, 6]
    assert choose_slots(rows, counts, beside, "tfidf", 2).tolist() == [2, 5]
    assert choose_slots(rows, counts, beside, "tfidf", None).tolist() == [2, 5]  # those all read score 0
    assert choose_slots(rows, counts, beside, "kl", 1).tolist() == [2]


def test_what_general_text_reads_counts_where_no_gate_keeps_it_out(opened: Memory, chat_backbone: Path, tmp_path: Path):
    opened.prepare()
    assert opened._editing().session.use.passages == 0  # no passage has a stored name in it
    config = TeachConfig().with_flags(
        backbone=str(chat_backbone), sub_keys=24, heads=2, top_k=4, key_dim=8, gate=False, exposures=1,
        dtype="float32", device="cpu",
    )  # fmt: skip
    teach_facts(FACTS, tmp_path / "ungated", config, quiet=True)
    with load_memory(tmp_path / "ungated", edits=EditConfig(slot_count=8)) as memory:
        memory.prepare()
        session = memory._editing().session
        use = session.use
        assert use.passages > 100 and int(use.general.max()) > use.passages // 2
        alone = [
            choose_slots(rows, counts, OtherReads(use.frequency[rows], 7, 0, len(use.frequency)), "tfidf", 8)
            for rows, counts in session.reads(FACTS)
        ]
        with edit_under_way(session, EditReport(1, "add", ())) as edit:
            chosen = edit.choose(FACTS, session.config.slot_count)
        read = use.general.double()
        assert read[chosen].mean() < read[torch.cat(alone).unique()].mean()
