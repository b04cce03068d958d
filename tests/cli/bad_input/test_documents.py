"""Bad input: documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.bad_input import Refused
from helpers.documents import write_pdf


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", None, "no such file; check the path"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\n", "the file is empty"),
        ("a.txt", b"\x00\x01\x02\x03", "not a text"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "not a text"),
        ("a.md", b"caf\xe9", ":1: not utf-8 (byte 0xe9); save the file as UTF-8, or name its encoding"),
        ("a.html", b"<script>x</script>", "holds no text"),
        ("a.html", b"\xff\x00<p>", "not a text"),
        ("a.rst", b"text", "unknown kind of document '.rst'; use .txt"),
        ("a.doc", b"text", "unknown kind of document '.doc'; save it as .docx"),
        ("a", b"text", "unknown kind of document ''"),
        ("a.pdf", b"%PDF-1.4 broken", "cannot be read as PDF"),
        ("a.pdf", b"text", "cannot be read as PDF"),
        ("a.docx", b"PK\x03\x04 broken", "cannot be read as DOCX"),
        ("a.docx", b"text", "cannot be read as DOCX"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", "an encrypted or an old Word file"),
    ],
)
def test_a_document_that_cannot_be_read(name: str, data: bytes | None, said: str, refused: Refused, tmp_path: Path):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    line = refused("facts", "from-text", path, "--out", tmp_path / "facts.jsonl")
    assert line.startswith(f"{path}:") and said in line and "; " in line


def test_a_folder_in_a_documents_place(refused: Refused, tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    assert "is a directory" in refused("facts", "from-text", tmp_path / "a.txt", "--out", tmp_path / "facts.jsonl")


def test_a_scanned_pdf_and_an_encrypted_one(refused: Refused, tmp_path: Path):
    pypdf = pytest.importorskip("pypdf")
    path = write_pdf(tmp_path / "a.pdf", ["", ""])
    line = refused("facts", "from-text", path, "--out", tmp_path / "facts.jsonl")
    assert "holds no text, only pictures" in line and "OCR" in line
    writer = pypdf.PdfWriter(clone_from=write_pdf(path, ["The fire warden is Ann Lee."]))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(path)
    line = refused("facts", "from-text", path, "--out", tmp_path / "facts.jsonl")
    assert line == f"{path}: the PDF is encrypted; save a copy without a password"


def test_a_document_without_facts(refused: Refused, tmp_path: Path):
    (tmp_path / "a.txt").write_text("We like tea. It rained.\n")
    line = refused("facts", "from-text", tmp_path / "a.txt", "--out", tmp_path / "facts.jsonl")
    assert line.startswith(f"{tmp_path / 'a.txt'}: no facts in 2 passages (2 no rule matched); write them as")


def test_facts_are_not_written_where_no_reader_would_take_them(refused: Refused, tmp_path: Path):
    (tmp_path / "a.txt").write_text("Name: Tarn\nPrice: 4\n")
    assert ".jsonl" in refused("facts", "from-text", tmp_path / "a.txt", "--out", tmp_path / "facts.txt")
    flags = ["--out", tmp_path / "facts.jsonl", "--most-words", 0]
    assert "give at least 1" in refused("facts", "from-text", tmp_path / "a.txt", *flags)
