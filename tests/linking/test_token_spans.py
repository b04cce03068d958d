from __future__ import annotations

from transformers import AutoTokenizer

from memlayers.backbones import POCKET
from memlayers.data.encoding import encode_prompt
from memlayers.linking.token_spans import mention_span


def test_a_name_is_sought_as_a_word_of_its_own_and_in_the_question() -> None:
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    question = "Record label of Re!?"
    prompt = encode_prompt(tokenizer, question)
    start, end = mention_span(tokenizer, prompt, "Re", question) or (0, 0)
    assert tokenizer.decode(prompt[:end]).endswith("Record label of Re")
    assert tokenizer.decode(prompt[start:end]).strip() == "Re"
    template = [*encode_prompt(tokenizer, "Re!"), *prompt]  # as if a chat template spoke of it
    assert (mention_span(tokenizer, template, "Re", question) or (0, 0))[1] == end + len(template) - len(prompt)
    joined = encode_prompt(tokenizer, "Records?")  # in no place a word of its own: the first one
    assert "Rec" in tokenizer.decode(joined[slice(*(mention_span(tokenizer, joined, "Rec") or (0, 0)))])
