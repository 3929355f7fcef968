"""Self-contained HTML pages, made from the Jinja templates in `templates/`.

Every value is escaped by the template engine; templates get text, `Cell`s and `Picture`s, never markup. Pictures are
inlined as data URIs, pages load nothing and run no script.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.results.plots import INK

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Cell:
    """A table cell with a CSS class and a text shown on hover."""

    text: str
    style: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its alternative text and caption."""

    uri: str
    alt: str
    caption: str


def picture(data: bytes, suffix: str, alt: str, caption: str) -> Picture:
    """The picture `data`; `suffix` is `.png`, `.svg`, ..."""
    return Picture(f"data:{MEDIA[suffix]};base64,{base64.b64encode(data).decode()}", alt, caption)


def for_dark_pages(svg: bytes) -> bytes:
    """A chart whose ink turns light where the page is dark."""
    rule = "".join(f'[style*="{what}: {INK}"]{{{what}:#d8d8d8!important}}' for what in ("fill", "stroke"))
    style = f"<style>@media (prefers-color-scheme: dark){{{rule}}}</style>"
    head, start, rest = svg.decode().partition("<defs>")
    return f"{head}{style}{start}{rest}".encode() if start else svg


def render(template: str, **values: object) -> str:
    """The page that `templates/<template>.html.jinja` makes of `values`; a name that is missing is an error."""
    page: str = _environment().get_template(f"{template}.html.jinja").render(**values)
    return page + "\n"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
