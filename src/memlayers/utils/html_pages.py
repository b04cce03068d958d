"""HTML pages that load nothing: one file, readable on a narrow screen and in the dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1d1d1f; --page: #fff; --soft: #6b6b70; --line: #d8d8dc; --card: #f6f6f8;
  --evidence: #fff0b3; --answer: #ffc84d; --refused: #b3261e; --look: #7a5b00; --right: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --page: #161618; --soft: #a0a0a8; --line: #3a3a40;
  --card: #222226; --evidence: #4a3f12; --answer: #8a6a00; --refused: #ff8a80; --look: #e0b84c; --right: #7fd6a0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 56rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.number { text-align: right; }
a { color: inherit; } .soft { color: var(--soft); font-size: .9rem; }
.refused { color: var(--refused); } .look { color: var(--look); } .right { color: var(--right); }
article { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; margin: .5rem 0; }
article p { margin: .2rem 0; } blockquote { margin: .4rem 0 0; padding-left: .7rem; border-left: 3px solid var(--line);
  white-space: pre-line; }
mark { background: var(--evidence); color: inherit; } mark b { background: var(--answer); font-weight: 600; }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """A page in the one style; its policy lets nothing be loaded and nothing be run.

    Args:
        title: as text.
        parts: HTML, whose texts are escaped already.
    """
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
    )
    return "\n".join([head, f"<h1>{escape(title)}</h1>", *parts, "</body></html>"]) + "\n"
