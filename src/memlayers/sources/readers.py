"""Readers of document files: bytes to text, HTML and DOCX to Markdown, PDF to its pages' text."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from memlayers.utils.errors import InputError, reason_of
from memlayers.utils.files import StrPath

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_CHARSET: Final = re.compile(rb"<meta[^>]+charset=[\"']?\s*([\w-]+)|<\?xml[^>]+encoding=[\"']([\w-]+)", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LIGATURES: Final = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xAD: None, 0xA0: " "}
_UNSHOWN: Final = frozenset("title script style noscript template head nav footer form button svg iframe".split())
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_BLOCKS: Final = frozenset(
    "address article aside blockquote body center details div dl fieldset figcaption figure header hr html main ol p "
    "pre section summary table ul".split()
) | frozenset(_HEADINGS)
_FOOTNOTE: Final = re.compile(r"\[\w{1,3}\]")
_MOST_SPANNED: Final = 1000  # cells that a browser lets one cell span


# Text


def read_bytes(path: StrPath) -> bytes:
    """All of a file that is not empty.

    Raises:
        InputError: missing, a directory, unreadable, or empty.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a directory; give the path of a file")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty; give one with something in it")
    return data


def decoded(path: StrPath, data: bytes, encoding: str | None, declared: str | None = None) -> str:
    """Bytes as text with plain line ends: by byte order mark, the encoding given, the one declared, or UTF-8.

    Raises:
        InputError: an unknown encoding, not text in it, or not text at all.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    chosen = marked or encoding or declared or "utf-8"
    try:
        text = data.decode(chosen)
    except LookupError:
        raise InputError(f"{path}: unknown encoding {chosen!r}; give one that Python knows, such as cp1252") from None
    except UnicodeDecodeError as error:
        if b"\x00" in data:
            _refuse_binary(path)
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not {chosen} (byte 0x{data[error.start]:02x}); save the file as UTF-8, or name its "
            "encoding: --encoding cp1252"
        ) from None
    if _CONTROL.search(text):
        _refuse_binary(path)
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\xa0", " ")


def declared_encoding(data: bytes) -> str | None:
    """The encoding that an HTML page says it has, in its first 2,048 bytes."""
    found = _CHARSET.search(data, 0, 2048)
    return (found[1] or found[2]).decode() if found else None


def _refuse_binary(path: StrPath) -> NoReturn:
    raise InputError(f"{path}: not a text: it holds control characters; give a document, named by its kind")


# PDF


def pdf_pages(path: StrPath, data: bytes) -> list[str]:
    """The text of each page of a PDF.

    Raises:
        InputError: damaged, encrypted, or without text.
    """
    try:
        import logging

        import pypdf
        from pypdf.errors import DependencyError
    except ImportError:
        _refuse_without_extra(path)
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it says of odd files is not the user's to repair
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{path}: the PDF is encrypted; save a copy without a password")
        pages = [_cleaned(page.extract_text()) for page in reader.pages]
    except InputError:
        raise
    except DependencyError:
        raise InputError(f"{path}: the PDF is encrypted; save a copy without a password") from None
    except Exception as error:  # a damaged file ends in errors of any kind
        raise InputError(f"{path}: cannot be read as PDF ({reason_of(error)}); save it again as PDF") from None
    finally:
        logger.setLevel(level)
    if not any(page.strip() for page in pages):
        raise InputError(
            f"{path}: the PDF holds no text, only pictures; run OCR on it first, for example with ocrmypdf"
        )
    return pages


def _cleaned(text: str) -> str:
    """Text as it was meant: ligatures are letters, soft hyphens and control characters are not there."""
    return _CONTROL.sub("", text.translate(_LIGATURES)).replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")


# DOCX


def docx_text(path: StrPath, data: bytes) -> str:
    """A DOCX file as Markdown.

    Raises:
        InputError: damaged, or encrypted.
    """
    try:
        import docx
        from docx.table import Table
    except ImportError:
        _refuse_without_extra(path)
    if data.startswith(b"\xd0\xcf\x11\xe0"):  # the old container, which encrypted files are in too
        raise InputError(f"{path}: an encrypted or an old Word file; save it as .docx without a password")
    try:
        opened: Any = docx.Document(io.BytesIO(data))
        parts = [
            _pipe_table([[cell.text for cell in row.cells] for row in part.rows])
            if isinstance(part, Table)
            else _docx_paragraph(part)
            for part in opened.iter_inner_content()
        ]
    except Exception as error:  # a damaged file ends in errors of any kind
        raise InputError(f"{path}: cannot be read as DOCX ({reason_of(error)}); save it again as DOCX") from None
    return _joined(parts)


def _docx_paragraph(paragraph: Any) -> str:
    text = "\n".join(filter(None, (_spaced(line) for line in paragraph.text.split("\n"))))
    style = str(getattr(paragraph.style, "name", "") or "")
    if not text:
        return ""
    if style == "Title":
        return f"# {_spaced(text)}"
    if found := re.fullmatch(r"Heading (\d)", style):
        return f"{'#' * min(int(found[1]) + 1, 6)} {_spaced(text)}"
    properties = paragraph._p.pPr
    numbered = None if properties is None else properties.numPr
    if style.startswith("List") or numbered is not None:
        level = 0 if numbered is None or numbered.ilvl is None else int(numbered.ilvl.val)
        return f"{'  ' * level}- {_spaced(text)}"
    return text


# HTML


def html_text(path: StrPath, page: str) -> str:
    """An HTML page as Markdown: headings, paragraphs, lists, definition lists, tables and code; no emphasis, no links.

    Raises:
        InputError: the reader is not installed.
    """
    try:
        from lxml import html
    except ImportError:
        _refuse_without_extra(path)
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(page.encode("utf-8"), parser=parser)
    except Exception as error:  # nothing in it, or a thousand elements within each other
        raise InputError(f"{path}: cannot be read as HTML ({reason_of(error)}); save it again as HTML") from None
    title = _spaced(root.findtext(".//title") or "")
    body = _joined(_html_blocks(root, 0))
    return body if root.find(".//h1") is not None or not title else f"# {title}\n\n{body}"


def _nodes(parent: Any) -> Iterator[Any]:
    """What an element holds, in order: its texts and its elements."""
    if parent.text:
        yield parent.text
    for child in parent:
        yield child
        if child.tail:
            yield child.tail


def _html_blocks(parent: Any, depth: int) -> Iterator[str]:
    """The blocks within an element, as Markdown; text between them is a paragraph."""
    run: list[str] = []  # of text that stands in no block
    for node in _nodes(parent):
        if isinstance(node, str):
            run.append(re.sub(r"\s+", " ", node))
        elif node.tag in _UNSHOWN:
            continue
        elif node.tag in _BLOCKS or next(node.iter(*_BLOCKS), None) is not None:
            yield _paragraph(run)
            run = []
            yield from _html_block(node, depth)
        else:
            run.append("\n" if node.tag == "br" else _inline(node))
    yield _paragraph(run)


def _html_block(tag: Any, depth: int) -> Iterator[str]:
    if tag.tag in _HEADINGS:
        if text := _spaced(_inline(tag)):
            yield f"{'#' * _HEADINGS[tag.tag]} {text}"
    elif tag.tag in ("ul", "ol"):
        yield "\n".join(_html_items(tag, depth))
    elif tag.tag == "dl":
        yield from _html_definitions(tag)
    elif tag.tag == "table":
        yield from _html_table(tag, depth)
    elif tag.tag == "pre":
        yield f"```\n{tag.text_content()}\n```"
    else:
        yield from _html_blocks(tag, depth)


def _html_items(tag: Any, depth: int) -> Iterator[str]:
    for item in tag.iterchildren("li"):
        nodes = list(_nodes(item))
        lists = [node for node in nodes if not isinstance(node, str) and node.tag in ("ul", "ol")]
        if text := _spaced("".join(_shown(node) for node in nodes if node not in lists)):
            yield f"{'  ' * depth}- {text}"
        for each in lists:
            yield from _html_items(each, depth + 1)


def _html_definitions(tag: Any) -> Iterator[str]:
    terms: list[str] = []
    defined = False
    for part in tag.iter("dt", "dd"):
        if next(part.iterancestors("dl")) is not tag or not (text := _spaced(_inline(part))):
            continue
        if part.tag == "dt":
            terms = [text] if defined else [*terms, text]
            defined = False
        else:
            yield f"{', '.join(terms)}\n: {text}" if terms else text
            defined = True


def _html_table(tag: Any, depth: int) -> Iterator[str]:
    """A table with its merged cells repeated; one that holds a table is the page's layout."""
    if tag.find(".//table") is not None:
        yield from _html_blocks(tag, depth)
        return
    grid: list[list[str]] = []
    heads: list[bool] = []  # whether each row holds only header cells
    spanned: dict[tuple[int, int], str] = {}
    for y, row in enumerate(tag.iter("tr")):
        cells: list[str] = []
        tags = list(row.iterchildren("td", "th"))
        for cell in tags:
            while (y, len(cells)) in spanned:
                cells.append(spanned.pop((y, len(cells))))
            text, x = _spaced(_inline(cell)), len(cells)
            wide, high = (_number(cell.get(name)) for name in ("colspan", "rowspan"))
            cells += [text] * wide
            spanned.update({(y + down, x + right): text for down in range(1, high) for right in range(wide)})
        while (y, len(cells)) in spanned:
            cells.append(spanned.pop((y, len(cells))))
        grid.append(cells)
        heads.append(bool(tags) and all(cell.tag == "th" for cell in tags))
    caption = tag.find("caption")
    if caption is not None and (text := _spaced(_inline(caption))):
        yield text
    if grid and not heads[0]:  # it has no header: what stands in its first row is not one
        grid.insert(0, [""] * len(grid[0]))
    yield _pipe_table(grid)


def _number(value: Any) -> int:
    return min(max(int(value), 1), _MOST_SPANNED) if str(value or "").isdigit() else 1


def _inline(tag: Any) -> str:
    """The text of an element, a space between its blocks; no footnote's number."""
    if tag.tag in _UNSHOWN:
        return ""
    text = "".join(map(_shown, _nodes(tag)))
    return "" if tag.tag == "sup" and _FOOTNOTE.fullmatch(text.strip()) else text


def _shown(node: Any) -> str:
    if isinstance(node, str):
        return node
    text = " " if node.tag == "br" else _inline(node)
    return f" {text} " if node.tag in _BLOCKS or node.tag in ("li", "dt", "dd", "td", "th", "tr") else text


def _paragraph(run: list[str]) -> str:
    return "\n".join(filter(None, (_spaced(line) for line in "".join(run).split("\n"))))


# Markdown


def _pipe_table(rows: Iterable[Iterable[str]]) -> str:
    """Rows, the header first, as a Markdown table; "" of none."""
    grid = [[_spaced(cell).replace("|", "\\|") for cell in row] for row in rows]
    if not grid:
        return ""
    width = max(map(len, grid))
    lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in grid]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])


def _joined(blocks: Iterable[str]) -> str:
    """Blocks with an empty line between them, but between items of a list."""
    text = ""
    for block in blocks:
        if block.strip():
            item = block.lstrip().startswith("- ") and text.rpartition("\n")[2].lstrip().startswith("- ")
            text += ("\n" if item else "\n\n" if text else "") + block
    return text


def _spaced(text: str) -> str:
    """Text on one line with single spaces."""
    return " ".join(text.split())


def _refuse_without_extra(path: StrPath) -> NoReturn:
    raise InputError(
        f'{path}: its reader is not installed; install it with pip install "memlayers[documents]"'
    ) from None
