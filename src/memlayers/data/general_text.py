"""General text: what a memory must leave alone.

Calibration needs it to place the queries, the gate as its negatives. It comes from the sample that ships with the
package, from a file of the user's, or is sampled from the backbone itself, where no corpus is at hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memlayers.backbones import context_length
from memlayers.data.encoding import encode_example, pad_token_id, plain_text_ids, sampled_texts, tokens_in
from memlayers.utils.errors import InputError
from memlayers.utils.files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHIPPED = Path(__file__).parents[1] / "pocket" / "general.jsonl"
SAMPLED = "sampled"
SHIPPED_NAME = "shipped"


@dataclass(frozen=True, slots=True)
class GeneralText:
    """Passages of running text and exchanges of a question and its answer."""

    passages: tuple[str, ...]
    chats: tuple[tuple[str, str], ...] = ()

    def encode(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
        """Token ids of every passage (cut at `max_length`) and every chat, in the tokenizer's own chat template."""
        texts = [plain_text_ids(tokenizer, passage)[:max_length] for passage in self.passages]
        chats = [encode_example(tokenizer, *chat).input_ids[:max_length] for chat in self.chats]
        return [ids for ids in texts + chats if ids]

    def sample(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, tokens: int, seed: int
    ) -> tuple[list[list[int]], int]:
        """About so many tokens of it, passages and chats in the proportion that they have here.

        Returns:
            Token ids of passages, then of chats; and how many passages there are.
        """
        passages = GeneralText(self.passages).encode(tokenizer, max_length)
        chats = GeneralText((), self.chats).encode(tokenizer, max_length)
        share = tokens_in(passages) / max(1, tokens_in(passages) + tokens_in(chats))
        kept = sampled_texts(passages, round(tokens * share), seed) if passages else []
        kept_chats = sampled_texts(chats, round(tokens * (1 - share)), seed) if chats else []
        return [*kept, *kept_chats], len(kept)


def read_general_text(path: str | Path) -> GeneralText:
    """Reads general text: ``.jsonl`` rows of {"text"} or {"question", "answers"}, or plain text.

    In plain text a blank line ends a passage.

    Raises:
        InputError: missing, empty or malformed, with the file and the line.
    """
    text = read_text(path)
    if Path(path).suffix != ".jsonl":
        passages = tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())
        if not passages:
            raise InputError(f"{path}: no text in it; give a file with at least one paragraph")
        return GeneralText(passages)
    passages_read: list[str] = []
    chats: list[tuple[str, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); write one object per line") from error
        if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip():
            passages_read.append(row["text"])
        elif isinstance(row, dict) and isinstance(row.get("question"), str) and _is_answers(row.get("answers")):
            chats.append((row["question"], row["answers"][0]))
        else:
            raise InputError(f'{path}:{number}: neither {{"text"}} nor {{"question", "answers"}}; give one of the two')
    if not passages_read and not chats:
        raise InputError(f"{path}: no text in it; give at least one row")
    return GeneralText(tuple(passages_read), tuple(chats))


def _is_answers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str) and bool(value[0].strip())


@torch.no_grad()
def sample_general_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: int = 256,
    tokens: int = 100,
    seed: int = 0,
) -> GeneralText:
    """Samples passages from the backbone itself, at temperature 1, each begun by a word of an ordinary question.

    Args:
        model: the backbone.
        tokenizer: its tokenizer.
        passages: how many.
        tokens: length of each.
        seed: the same seed gives the same text on the same machine.
    """
    starts = ("The", "In", "A", "It is", "When", "On", "This", "There are")
    texts: list[str] = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in starts:
            ids = torch.tensor([plain_text_ids(tokenizer, start)], device=model.device)
            generate: Any = model.generate
            out = generate(
                input_ids=ids.expand(-(-passages // len(starts)), -1),
                attention_mask=torch.ones_like(ids).expand(-(-passages // len(starts)), -1),
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=min(tokens, context_length(model) - ids.shape[1]),
                pad_token_id=pad_token_id(tokenizer),
            )  # fmt: skip
            texts += tokenizer.batch_decode(out, skip_special_tokens=True)
    return GeneralText(tuple(text for text in texts[:passages] if text.strip()))


def load_general_text(
    source: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> GeneralText:
    """Returns the general text that `source` names: None or "shipped", "sampled", or a file."""
    if source == SAMPLED:
        return sample_general_text(model, tokenizer, seed=seed)
    return read_general_text(SHIPPED if source in (None, SHIPPED_NAME) else source)
