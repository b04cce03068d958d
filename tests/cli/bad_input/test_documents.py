"""Bad input: documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.bad_input import Refused
from helpers.documents import write_pdf


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"\x00\x01\x02\x03", "not a text"),
        ("a.md", b"caf\xe9", ":1: not utf-8 (byte 0xe9); save the file as UTF-8, or name its encoding"),
        ("a.rst", b"text", "unknown kind of document '.rst'; use .txt"),
        ("a.docx", b"PK\x03\x04 broken", "cannot be read as DOCX"),
    ],
)
def test_a_document_that_cannot_be_read(name: str, data: bytes, said: str, refused: Refused, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    line = refused("facts", "from-text", tmp_path / name, "--out", tmp_path / "facts.jsonl")
    assert line.startswith(f"{tmp_path / name}:") and said in line and "; " in line


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
