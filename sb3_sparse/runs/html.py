"""A page that needs nothing but itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --quiet: #59636e; --line: #d1d9e0; --page: #ffffff; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --quiet: #9198a1; --line: #3d444d; --page: #0d1117; --band: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 1rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.quiet { color: var(--quiet); } .note { border-left: 4px solid #D55E00; padding: .3rem .8rem; background: var(--band); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead { background: var(--band); }
figure { margin: 1rem 0; } figcaption { color: var(--quiet); font-size: 13px; }
figure svg { width: 100%; min-width: 34rem; height: auto; max-width: 1000px; background: #ffffff; display: block; }
pre { overflow-x: auto; background: var(--band); padding: .6rem; font-size: 12px; }
"""


def text(content: str) -> str:
    """
    Anything as text.

    :param content: What shall be read as it is.
    :return: HTML.
    """
    return html.escape(content)


def paragraph(content: str, kind: str = "") -> str:
    """
    A paragraph.

    :param content: Text.
    :param kind: ``"quiet"``, ``"note"`` or nothing.
    :return: HTML.
    """
    return f'<p class="{kind}">{text(content)}</p>' if kind else f"<p>{text(content)}</p>"


def table(markdown: str) -> str:
    """
    A table that scrolls by itself where the page is narrow.

    :param markdown: What :func:`sb3_sparse.utils.markdown.markdown` gave.
    :return: HTML.
    """
    rows = [line.strip().removeprefix("|").removesuffix("|").split(" | ") for line in markdown.strip().splitlines()]
    lines = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
    head = "".join(f"<th>{text(cell)}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in line) + "</tr>" for line in lines[2:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def code(content: str) -> str:
    """
    Text as it was written.

    :param content: Text.
    :return: HTML.
    """
    return f"<pre>{text(content)}</pre>"


def figure(svg: Path, caption: str) -> str:
    """
    A figure, inside the page.

    :param svg: An SVG file of matplotlib's.
    :param caption: What it shows.
    :return: HTML.
    """
    content = svg.read_text()
    content = content[content.index("<svg") :]
    # Several figures in one page: their names must not collide, and none may refer to elsewhere
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.S)
    prefix = re.sub(r"\W", "", svg.stem)
    content = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', content)
    content = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", content)
    # It is as wide as the page lets it be
    content = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", content, count=1)
    content = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", content, count=1)
    label = html.escape(caption, quote=True)
    content = content.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f'<figure><div class="scroll">{content}</div><figcaption>{text(caption)}</figcaption></figure>'


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """
    A whole page.

    :param title: Its title.
    :param sections: Heading (or nothing) and HTML of each.
    :return: HTML.
    """
    parts = [f"<h1>{text(title)}</h1>"]
    for heading, contents in sections:
        if contents:
            parts += [f"<h2>{text(heading)}</h2>"] if heading else []
            parts += contents
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
