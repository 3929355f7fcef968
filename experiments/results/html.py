"""Self-contained HTML pages in which every string from outside is escaped.

Text becomes markup only through `tag`, which escapes everything that is not already `Markup`; there is no other way to
build a page here. Pictures are inlined as data URIs, pages load nothing and run no script.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

NAME = re.compile(r"[a-z][a-z0-9-]*")
MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
th { overflow-wrap: anywhere; }
td.differs { background: #fc02; } td.missing { color: #c50; }
figure { margin: 1rem 0; } figure img { max-width: 100%; image-rendering: auto; }
figcaption, .note { font-size: .85rem; opacity: .75; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .82rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """`value` escaped, unless it is markup already."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`; children and attribute values are escaped. `class_` stands for `class`."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a tag")
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        # Only attributes that cannot run anything; addresses may be pictures of ours and anchors alone.
        if not NAME.fullmatch(attribute) or attribute.startswith("on"):
            raise ValueError(f"{key!r} is not an attribute for a report")
        if attribute in ("src", "href") and not str(value).startswith(("data:image/", "#")):
            raise ValueError(f"{attribute}: only inlined pictures and anchors; found {str(value)[:40]!r}")
        written.append(f' {attribute}="{escape(str(value), quote=True)}"')
    opening = f"<{name}{''.join(written)}>"
    return Markup(opening if name in ("img", "br", "hr", "meta") else f"{opening}{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Children one after another; sequences are flattened, None is left out."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        else:
            parts.append(text(child))
    return Markup("".join(parts))


def picture(data: bytes, suffix: str, alt: str, caption: object = None) -> Markup:
    """A figure with the picture inlined; `suffix` is `.png`, `.svg`, ..."""
    uri = f"data:{MEDIA[suffix]};base64,{base64.b64encode(data).decode()}"
    return tag("figure", tag("img", src=uri, alt=alt), tag("figcaption", caption) if caption is not None else None)


def picture_file(path: Path, caption: object = None) -> Markup:
    """A picture file inlined, captioned with its name unless told otherwise."""
    return picture(path.read_bytes(), path.suffix.lower(), path.stem, path.name if caption is None else caption)


def table(header: Sequence[object], rows: Sequence[Sequence[object]], numbers: Sequence[int] = ()) -> Markup:
    """A table; cells may be markup or whole `<td>`s made with `cell`; columns in `numbers` are right-aligned."""

    def cells(row: Sequence[object], name: str) -> list[Markup]:
        return [
            value if isinstance(value, _Cell) else tag(name, value, class_="number" if i in numbers else None)
            for i, value in enumerate(row)
        ]

    head = tag("thead", tag("tr", cells(header, "th")))
    return tag("table", head, tag("tbody", [tag("tr", cells(row, "td")) for row in rows]))


class _Cell(Markup):
    __slots__ = ()


def cell(value: object, *, class_: str | None = None, title: str | None = None) -> Markup:
    """A `<td>` with a class or a text shown on hover."""
    return _Cell(tag("td", value, class_=class_, title=title))


def definitions(values: Mapping[str, object]) -> Markup:
    """A two-column table of names and values."""
    return table(["", ""], [[name, value] for name, value in values.items()])


def folded(summary: object, *children: object) -> Markup:
    """Content behind a line that opens it."""
    return tag("details", tag("summary", summary), *children)


def page(title: str, *body: object) -> str:
    """A whole document that may load and run nothing."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"
