"""Readers of document files: bytes to text, HTML and DOCX to Markdown, PDF to its pages' text."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from memlayers.utils.errors import InputError, reason_of
from memlayers.utils.files import StrPath

if TYPE_CHECKING:
    from bs4 import Tag

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
        import bs4
    except ImportError:
        _refuse_without_extra(path)
    soup = bs4.BeautifulSoup(page, "lxml")  # closes what a page leaves open, as browsers do
    for note in soup.find_all("sup"):
        if _FOOTNOTE.fullmatch(note.get_text(strip=True)):
            note.decompose()
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    body = _joined(_html_blocks(soup, 0))
    return body if soup.find("h1") or not title else f"# {_spaced(title)}\n\n{body}"


def _html_blocks(parent: Tag, depth: int) -> Iterator[str]:
    """The blocks within an element, as Markdown; text between them is a paragraph."""
    import bs4
    from bs4.element import NavigableString

    run: list[str] = []  # of text that stands in no block
    for child in parent.children:
        if isinstance(child, bs4.Tag) and (child.name in _BLOCKS or child.find(list(_BLOCKS))):
            yield _paragraph(run)
            run = []
            if child.name not in _UNSHOWN:
                yield from _html_block(child, depth)
        elif isinstance(child, bs4.Tag):
            run.append("\n" if child.name == "br" else _inline(child))
        elif type(child) is NavigableString:
            run.append(re.sub(r"\s+", " ", child))
    yield _paragraph(run)


def _html_block(tag: Tag, depth: int) -> Iterator[str]:
    if tag.name in _HEADINGS:
        if text := _spaced(_inline(tag)):
            yield f"{'#' * _HEADINGS[tag.name]} {text}"
    elif tag.name in ("ul", "ol"):
        yield "\n".join(_html_items(tag, depth))
    elif tag.name == "dl":
        yield from _html_definitions(tag)
    elif tag.name == "table":
        yield from _html_table(tag, depth)
    elif tag.name == "pre":
        yield f"```\n{tag.get_text()}\n```"
    else:
        yield from _html_blocks(tag, depth)


def _html_items(tag: Tag, depth: int) -> Iterator[str]:
    import bs4
    from bs4.element import NavigableString

    for item in tag.find_all("li", recursive=False):
        lists = [each for each in item.find_all(["ul", "ol"]) if each.find_parent("li") is item]
        inner = "".join(
            _inline(each) if isinstance(each, bs4.Tag) else str(each) if type(each) is NavigableString else ""
            for each in item.children
            if each not in lists
        )
        if text := _spaced(inner):
            yield f"{'  ' * depth}- {text}"
        for each in lists:
            yield from _html_items(each, depth + 1)


def _html_definitions(tag: Tag) -> Iterator[str]:
    terms: list[str] = []
    defined = False
    for part in tag.find_all(["dt", "dd"]):
        if part.find_parent("dl") is not tag or not (text := _spaced(_inline(part))):
            continue
        if part.name == "dt":
            terms = [text] if defined else [*terms, text]
            defined = False
        else:
            yield f"{', '.join(terms)}\n: {text}" if terms else text
            defined = True


def _html_table(tag: Tag, depth: int) -> Iterator[str]:
    """A table with its merged cells repeated; one that holds a table is the page's layout."""
    if tag.find("table"):
        yield from _html_blocks(tag, depth)
        return
    grid: list[list[str]] = []
    heads: list[bool] = []  # whether each row holds only header cells
    spanned: dict[tuple[int, int], str] = {}
    for y, row in enumerate(tag.find_all("tr")):
        cells: list[str] = []
        tags = row.find_all(["td", "th"], recursive=False)
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
        heads.append(bool(tags) and all(cell.name == "th" for cell in tags))
    caption = tag.find("caption")
    if caption and (text := _spaced(_inline(caption))):
        yield text
    if grid and not heads[0]:  # it has no header: what stands in its first row is not one
        grid.insert(0, [""] * len(grid[0]))
    yield _pipe_table(grid)


def _number(value: Any) -> int:
    return min(max(int(value), 1), _MOST_SPANNED) if str(value or "").isdigit() else 1


def _inline(tag: Tag) -> str:
    """The text of an element, a space between its blocks."""
    import bs4
    from bs4.element import NavigableString

    if tag.name in _UNSHOWN:
        return ""
    parts = []
    for child in tag.children:
        if isinstance(child, bs4.Tag):
            text = " " if child.name == "br" else _inline(child)
            parts.append(f" {text} " if child.name in _BLOCKS or child.name in ("li", "td", "th", "tr") else text)
        elif type(child) is NavigableString:
            parts.append(str(child))
    return "".join(parts)


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
