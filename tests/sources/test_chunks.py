from __future__ import annotations

import pytest

from memlayers.sources.chunks import chunks_of
from memlayers.sources.documents import Document

PARAGRAPHS = [
    f"Paragraph {i} says something about the number {i}, and then {'more and ' * 20}no more." for i in range(40)
]


def document(*blocks: str) -> Document:
    return Document("d.md", "\n\n".join(blocks) + "\n")


@pytest.mark.parametrize("text", ["", " \n\n\t\n"])
def test_no_text_no_chunks(text: str):
    assert chunks_of(Document("d.txt", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(PARAGRAPHS),
        "word " * 5000,
        "x" * 7001,
        "A sentence. " * 900,
        "# One\n\n" + "## Two\n\n".join(PARAGRAPHS),
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 900,
        "Title\n\n\n1. First\ntext\n   \n2. Second\n\n- item\n- item\n\nUnderlined\n==========\n\n# Alone at the end",
    ],
)
def test_chunks_hold_all_of_a_text_and_none_twice(text: str):
    made = chunks_of(Document("d.md", text))
    assert all(0 < len(chunk.text) <= 2000 for chunk in made)
    assert [chunk.text for chunk in made] == [chunk.text.strip() for chunk in made]
    between = [text[one.end : other.start] for one, other in zip(made, made[1:], strict=False)]
    assert not "".join([text[: made[0].start], *between, text[made[-1].end :]]).strip()


def test_a_chunk_ends_at_a_sentence_where_no_line_does():
    for chunk in chunks_of(Document("d.md", "A sentence of some words. " * 300)):
        assert chunk.text.endswith(".")


def test_headings_stand_above_every_chunk_of_their_section():
    long = " ".join(PARAGRAPHS)
    made = chunks_of(document("# Guide", "## Ferry", "### Crew", long, "## Pier", long))
    assert made[0].headings == () and made[0].text.startswith("# Guide")
    assert made[1].headings == ("Guide", "Ferry", "Crew")
    pier = next(i for i, chunk in enumerate(made) if chunk.text.startswith("## Pier"))
    assert made[pier].headings == ("Guide",)
    assert {chunk.headings for chunk in made[pier + 1 :]} == {("Guide", "Pier")}


def test_a_heading_is_never_the_end_of_a_chunk():
    sections = [part for i, text in enumerate(PARAGRAPHS) for part in (f"## Section {i}", text)]
    made = chunks_of(document("# Guide", *sections))
    assert len(made) > 5
    assert not any(chunk.text.splitlines()[-1].startswith("#") for chunk in made)


def test_the_first_line_of_a_table_stands_above_its_other_rows():
    made = chunks_of(document("# Prices", "| thing | price |\n|---|---|\n" + "| lamp | 3 pounds |\n" * 300))
    assert [chunk.headings for chunk in made[1:]] == [("Prices", "| thing | price |")] * (len(made) - 1)


def test_a_paragraph_put_in_leaves_most_chunks_as_they_were():
    before = {chunk.text for chunk in chunks_of(document(*PARAGRAPHS))}
    changed = []
    for place in range(len(PARAGRAPHS)):
        paragraphs = [*PARAGRAPHS[:place], "Put in: " + "new words " * 30, *PARAGRAPHS[place:]]
        changed.append(len({chunk.text for chunk in chunks_of(document(*paragraphs))} - before))
    assert len(before) >= 6 and min(changed) >= 1 and sum(changed) / len(changed) < 3


def test_short_sections_share_a_chunk():
    made = chunks_of(document("# Guide", *(part for i in range(5) for part in (f"## Section {i}", "Few words."))))
    assert len(made) == 1


def test_a_chunk_says_where_it_stands():
    text = "word " * 900
    source = chunks_of(Document("d.pdf", text, (0, 1000)))[1].source
    assert source.page == 2 and source.evidence == text[source.start : source.end]
