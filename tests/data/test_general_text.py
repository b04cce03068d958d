from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from memlayers.backbones import load_backbone
from memlayers.data.encoding import encode_example, plain_text_ids
from memlayers.data.general_text import SHIPPED, GeneralText, load_general_text, read_general_text, sample_general_text
from memlayers.utils.errors import InputError


@pytest.fixture(scope="module")
def backbone(chat_backbone: Path) -> tuple[Any, Any]:
    return load_backbone(chat_backbone, "float32")


def _file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_plain_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "text.txt", "\n One\nline more.\n\n\n\nTwo.\n")
    assert read_general_text(path) == GeneralText(("One\nline more.", "Two."))


def test_jsonl_holds_passages_and_chats(tmp_path: Path) -> None:
    rows = [{"text": "Öl."}, {"question": "Who?", "answers": ["He", "She"]}, {"text": "Two.", "source": "wiki"}]
    path = _file(tmp_path, "text.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_general_text(path) == GeneralText(("Öl.", "Two."), (("Who?", "He"),))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n\n", "the file is empty"),
        ("a.jsonl", '{"text": "one"}\n{"text": \n', ":2: not JSON"),
        ("a.jsonl", '{"text": "one"}\n\n{"txt": "two"}\n', ":3: neither"),
        ("a.jsonl", '{"text": " "}\n', ":1: neither"),
        ("a.jsonl", '{"text": 3}\n', ":1: neither"),
        ("a.jsonl", '["one"]\n', ":1: neither"),
        ("a.jsonl", '{"question": "Who?", "answers": []}\n', ":1: neither"),
        ("a.jsonl", '{"question": "Who?", "answers": 7}\n', ":1: neither"),
        ("a.jsonl", '{"question": "Who?", "answers": "He"}\n', ":1: neither"),
    ],
)
def test_malformed_text_is_named_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = _file(tmp_path, name, text)
    with pytest.raises(InputError) as told:
        read_general_text(path)
    assert str(told.value).startswith(str(path)) and message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_general_text(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"one\ntw\xe4\n")
    with pytest.raises(InputError, match="latin.txt:2: not UTF-8"):
        read_general_text(tmp_path / "latin.txt")


def test_encoding_cuts_passages_and_uses_the_chat_template(backbone: tuple[Any, Any]) -> None:
    tokenizer = backbone[1]
    text = GeneralText(("The river runs to the sea.", "Sea."), (("Who?", "He"),))
    encoded = text.encode(tokenizer, 5)
    assert encoded[0] == plain_text_ids(tokenizer, "The river runs to the sea.")[:5] and len(encoded[0]) == 5
    assert encoded[1] == plain_text_ids(tokenizer, "Sea.")
    assert text.encode(tokenizer, 500)[2] == encode_example(tokenizer, "Who?", "He").input_ids
    assert encoded[2] == encode_example(tokenizer, "Who?", "He").input_ids[:5]


def test_sampling_is_seeded_and_leaves_the_generator_alone(backbone: tuple[Any, Any]) -> None:
    model, tokenizer = backbone
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    texts = [sample_general_text(model, tokenizer, passages=9, tokens=6, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0].passages) == 9 and not texts[0].chats
    assert len(set(texts[0].passages)) > 5
    # The random backbone writes ends of turns too, so that a passage may be shorter, but hardly longer.
    assert all(len(plain_text_ids(tokenizer, passage)) < 30 for passage in texts[0].passages)


def test_the_source_is_named(backbone: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, "text.txt", "One.")
    assert load_general_text(str(path), *backbone) == GeneralText(("One.",))
    seeds: list[int] = []

    def sampled(model: Any, tokenizer: Any, *, seed: int) -> GeneralText:
        seeds.append(seed)
        return GeneralText(("sampled",))

    monkeypatch.setattr("memlayers.data.general_text.sample_general_text", sampled)
    assert load_general_text("sampled", *backbone, seed=7).passages == ("sampled",)
    assert seeds == [7]


def test_the_shipped_sample_is_whole(backbone: tuple[Any, Any]) -> None:
    if not SHIPPED.is_file():
        pytest.skip("the shipped sample is not built yet")
    text = load_general_text(None, *backbone)
    assert len(text.passages) >= 100 and len(text.chats) >= 100
