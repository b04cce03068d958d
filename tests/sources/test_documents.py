"""Documents as text: every kind of file, pages, encodings, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.documents import write_pdf
from memlayers.sources.documents import read_document
from memlayers.utils.errors import InputError

PAGE = """<html><head><title>Aerolamp 100 - Shop</title><style>p {}</style></head><body><nav>Home</nav>
<h2>Details</h2><p>It is a <b>lamp</b>,<br>made in Ferrow.<sup>[1]</sup></p>
<ul><li>price: 49&nbsp;pounds<ul><li>with VAT: <i>59</i> pounds</li></ul></li><li>weight: 2 kg</li></ul>
<dl><dt>Height<dd>31 cm</dl>
<table><tr><th>Part<th>Price<tr><td rowspan=2>Shade<td>4 a|b<tr><td>5</table>
<table><tr><td>Volts</td><td>12</td></tr></table><pre>print( 1 )</pre><script>no()</script></body></html>"""
READ = """# Aerolamp 100 - Shop

## Details

It is a lamp,
made in Ferrow.

- price: 49 pounds
  - with VAT: 59 pounds
- weight: 2 kg

Height
: 31 cm

| Part | Price |
| --- | --- |
| Shade | 4 a\\|b |
| Shade | 5 |

|  |  |
| --- | --- |
| Volts | 12 |

```
print( 1 )
```
"""


def test_html_becomes_markdown(tmp_path: Path):
    pytest.importorskip("lxml")
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    assert read_document(tmp_path / "page.html").text == READ


def test_html_in_the_encoding_that_it_declares(tmp_path: Path):
    pytest.importorskip("lxml")
    (tmp_path / "page.html").write_bytes('<meta charset="cp1252"><p>Café</p>'.encode("cp1252"))
    assert read_document(tmp_path / "page.html").text == "Café\n"


def test_docx_becomes_markdown(tmp_path: Path):
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("Tarn Ltd. Staff Handbook", 0)
    made.add_heading("Safety", 1)
    made.add_paragraph("The fire warden is Neil Abara.")
    made.add_paragraph("Price: 4 pounds", style="List Bullet")
    made.add_paragraph("Weight: 2 kg", style="List Bullet")
    table = made.add_table(rows=2, cols=2)
    for i, text in enumerate(("Role", "Who", "First aider", "Ann Lee")):
        table.cell(i // 2, i % 2).text = text
    made.save(str(tmp_path / "a.docx"))
    assert read_document(tmp_path / "a.docx").text == (
        "# Tarn Ltd. Staff Handbook\n\n## Safety\n\nThe fire warden is Neil Abara.\n\n- Price: 4 pounds\n"
        "- Weight: 2 kg\n\n| Role | Who |\n| --- | --- |\n| First aider | Ann Lee |\n"
    )


def test_pdf_keeps_its_pages_and_joins_its_lines(tmp_path: Path):
    pytest.importorskip("pypdf")
    wrapped = "The company makes barometers and the head office is at 14 Corve\nStreet, beside the old mill of Ludlow."
    path = write_pdf(tmp_path / "a.pdf", [wrapped, "", "Page three (the last)."])
    document = read_document(path)
    assert document.text.splitlines() == [wrapped.replace("\n", " "), "", "Page three (the last)."]
    at = document.text.index("three")
    assert document.source(at, at + 5).page == 3
    assert document.source(0, 3).page == 1


def test_a_wrapped_sentence_stands_on_one_line(tmp_path: Path):
    (tmp_path / "a.md").write_bytes("\ufeffOne\r\ntwo.\r\n\r\n- three\r\n  four\r\n".encode())
    assert read_document(tmp_path / "a.md").text == "One two.\n\n- three four\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding: str, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Über uns".encode(encoding))
    assert read_document(tmp_path / "a.txt").text == "Über uns\n"


def test_another_encoding_is_given(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Über uns".encode("cp1252"))
    assert read_document(tmp_path / "a.txt", "cp1252").text == "Über uns\n"
    with pytest.raises(InputError, match="unknown encoding 'klingon'"):
        read_document(tmp_path / "a.txt", "klingon")


@pytest.mark.parametrize(("suffix", "module"), [(".html", "lxml"), (".pdf", "pypdf"), (".docx", "docx")])
def test_a_missing_reader_names_the_extra(suffix: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    (tmp_path / f"a{suffix}").write_text("<p>text</p>")
    with pytest.raises(InputError, match=r'pip install "memlayers\[documents\]"'):
        read_document(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", None, "no such file; check the path"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\n", "the file is empty"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "not a text"),
        ("a.html", b"<script>x</script>", "holds no text"),
        ("a.html", b"\xff\x00<p>", "not a text"),
        ("a.doc", b"text", "unknown kind of document '.doc'; save it as .docx"),
        ("a", b"text", "unknown kind of document ''"),
        ("a.pdf", b"%PDF-1.4 broken", "cannot be read as PDF"),
        ("a.pdf", b"text", "cannot be read as PDF"),
        ("a.docx", b"text", "cannot be read as DOCX"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", "an encrypted or an old Word file"),
    ],
)
def test_what_cannot_be_read(name: str, data: bytes | None, said: str, tmp_path: Path):
    if name.endswith((".html", ".pdf", ".docx")):
        pytest.importorskip({"html": "lxml", "pdf": "pypdf", "docx": "docx"}[name[2:]])
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_document(tmp_path / name)
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / name}:") and said in line and "; " in line and "\n" not in line


def test_a_folder_is_no_document(tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        read_document(tmp_path / "a.txt")
