"""Parts of a self-contained HTML page: everything inside one file, all text escaped."""

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: 12px; }
.failed { color: #a00; } small { color: #666; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole page, its title as the heading."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join([element("h1", title), *body])
            + "\n</body></html>\n")


def record(config: Mapping[str, Any] | None, versions: Mapping[str, str] | None, notes: Sequence[str]) -> list[str]:
    """The end of a report: how it was measured, with what versions and configuration, each where it is given.

    `versions` are of programs, or other facts of the run, by name: see `reporting.versions`.
    """
    parts = []
    if notes:
        parts += ["<h2>How it was measured</h2>", bullets(notes)]
    if versions:
        parts += ["<h2>Versions</h2>", table(["what", "version or value"], [list(item) for item in versions.items()])]
    if config is not None:
        parts += ["<h2>Configuration</h2>", element("pre", json.dumps(config, indent=2, default=str))]
    return parts


def table(header: Sequence[Any], lines: Iterable[Sequence[Any]]) -> str:
    """A table; the first column is set left, the others right."""
    head = "".join(element("th", cell) for cell in header)
    body = "".join("<tr>" + "".join(element("td", cell) for cell in line) + "</tr>\n" for line in lines)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def bullets(items: Iterable[Any]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(element("li", item) for item in items) + "</ul>"


def element(tag: str, content: Any) -> str:
    """Text in an element."""
    return f"<{tag}>{html.escape(str(content))}</{tag}>"


def image(png: bytes, description: str) -> str:
    """A PNG image inside the page."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{html.escape(description, quote=True)}" src="data:image/png;base64,{data}">'
