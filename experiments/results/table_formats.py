"""A filled table as Markdown, LaTeX (booktabs), CSV, JSON or a page; every reproduced cell leads back to its runs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence

from experiments.results import html
from experiments.results.fill_commands import placeholders
from experiments.results.tables import Cell, Column, Filled, Row, missing
from experiments.store.scores import Score
from experiments.store.typed_json import Block

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def cell_text(cell: Cell, column: Column, plus_minus: str = " ± ") -> str:
    """`6.18 | 6.21 ± 0.03 (+0.03)`; a dash for what is not there."""
    if column.metric is None:
        return cell.text or ""
    if cell.published is None and cell.command is None:
        return ""
    published = f"{cell.published:.{column.digits}f}" if cell.published is not None else None
    reproduced = _reproduced(cell, column, plus_minus)
    if cell.command is None:
        return published or ""
    return f"{published} / {reproduced}" if published is not None else reproduced


def _reproduced(cell: Cell, column: Column, plus_minus: str) -> str:
    if cell.reproduced is None:
        return cell.differs or "—"
    text = cell.reproduced.fixed(column.digits).replace(" ± ", plus_minus)
    if cell.difference is not None:
        text += f" ({cell.difference:+.{column.digits}f})"
    return text


def heading(column: Column) -> str:
    """The column's title with an arrow to the better side."""
    arrow = {True: " ↓", False: " ↑", None: ""}[column.lower_is_better]
    return f"{column.title}{arrow}"


#: The one footnote of all missing cells of a printed table; `missing` lists each with its command.
MISSING_IN_PRINT = "not reproduced here"


class Notes:
    """Numbered footnotes; equal texts share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of `text`, new or known."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def origin(cell: Cell) -> str:
    """Run uids and commits behind a reproduced cell, with images and reference of each, and code that has changed."""
    about = [_measured(score) for score in cell.scores] or [""] * len(cell.results)
    runs = [f"{r.run} at {r.commit[:12] or 'no commit'}" for r in cell.results]
    changed = cell.results[0].old_code if cell.results else ()
    more = " ..." if len(changed) > 3 else ""
    told = f"; by code that has changed since ({', '.join(changed[:3])}{more})" if changed else ""
    return ", ".join(f"{run}{text}" for run, text in zip(runs, about, strict=True)) + told


def _measured(score: Score) -> str:
    """` (50,000 images; reference VIRTUAL.npz, sha256 0123456789ab)`, as far as it is known."""
    parts = [] if score.num_images is None else [f"{score.num_images:,} images"]
    reference = score.details.get("reference")
    if isinstance(reference, Mapping):
        names = [str(reference[key]) for key in ("dataset", "split", "file") if reference.get(key)]
        if isinstance(count := reference.get("num_images"), int):
            names.append(f"{count:,} pictures")
        if digest := reference.get("sha256"):
            names.append(f"sha256 {str(digest)[:12]}")
        parts += [f"reference {', '.join(names)}"] if names else []
    elif isinstance(reference, str):
        parts.append(f"reference {reference}")
    return f" ({'; '.join(parts)})" if parts else ""


def _note_of(cell: Cell, row: Row) -> str | None:
    """The cell's footnote; cells of a row that are missing for one reason share it."""
    if cell.missing:
        return f"missing: {row.name}: {cell.missing.partition(f' of {row.name}: ')[2] or cell.missing}"
    return f"runs: {origin(cell)}" if cell.results else None


def _legend(filled: Filled) -> list[str]:
    shown = {c.protocol: c for c in filled.table.columns if c.protocol}
    about = [
        f"{name}: {filled.table.protocols.get(str(name), 'conf/protocol/' + str(name) + '.yaml')}" for name in shown
    ]
    both = any(c.published is not None and c.command for row in filled.cells for c in row.values())
    codes = {r.code for row in filled.cells for c in row.values() for r in c.results}
    sources = list(dict.fromkeys(str(r.source) for r in filled.table.rows if r.published and r.source))
    commands = [c.command for row in filled.cells for c in row.values() if c.command and c.missing]
    words = list(dict.fromkeys(word for command in commands for word in placeholders(command)))
    return [
        *([f"{', '.join(words)}: data of yours; docs/reproducing.md says which"] if words else []),
        *(["published / reproduced (difference); ± is one standard deviation over seeds"] if both else []),
        *(["not all numbers were made by the same code; the notes name what has changed"] if len(codes) > 1 else []),
        *(f"source: {s}" for s in sources),
        *(f"protocol {text}" for text in about),
        *([filled.table.note] if filled.table.note else []),
    ]


def markdown(filled: Filled) -> str:
    """A pipe table with numbered footnotes."""
    table, notes = filled.table, Notes()

    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [f"**{escaped(table.title)}**", ""]
    header = ["", *(heading(c) + (f" ({c.protocol})" if c.protocol else "") for c in table.columns)]
    lines += ["| " + " | ".join(map(escaped, header)) + " |"]
    lines += ["|---|" + "".join("---:|" if c.metric else "---|" for c in table.columns)]
    for row, cells in zip(table.rows, filled.cells, strict=True):
        shown = []
        for column in table.columns:
            cell = cells[column.key]
            note = _note_of(cell, row)
            mark = f" [{notes.number(note)}]" if note else ""
            shown.append(escaped(cell_text(cell, column)) + mark)
        lines.append("| " + " | ".join([escaped(row.name), *shown]) + " |")
    lines += ["", *(f"[{i}] {text}" + "  " for i, text in enumerate(notes.texts, 1))]
    lines += ["", *(f"{text}  " for text in _legend(filled))]
    return "\n".join(lines).rstrip() + "\n"


def latex_text(text: str) -> str:
    """`text` with TeX's special characters made harmless."""
    made = "".join(LATEX.get(c, c) for c in text)
    for character, command in {"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "—": "---"}.items():
        made = made.replace(character, command)
    return made


def latex(filled: Filled) -> str:
    """A booktabs tabular, shrunk where it is wider than the column, with superscript footnotes below."""
    table, notes = filled.table, Notes()
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', table.name)}}}",
    ]
    lines += [r"\sbox0{%"]
    lines += [r"\begin{tabular}{l" + "".join("r" if c.metric else "l" for c in table.columns) + "}", r"\toprule"]
    lines += [" & ".join(["", *(latex_text(heading(c)) for c in table.columns)]) + r" \\", r"\midrule"]
    for row, cells in zip(table.rows, filled.cells, strict=True):
        shown = []
        for column in table.columns:
            cell = cells[column.key]
            note = MISSING_IN_PRINT if cell.missing else _note_of(cell, row)
            mark = rf"\textsuperscript{{{notes.number(note)}}}" if note else ""
            text = cell_text(cell, column)
            if cell.missing:
                text = f"{cell.published:.{column.digits}f}" if cell.published is not None else "--"
            shown.append(latex_text(text) + mark)
        lines.append(" & ".join([latex_text(row.name), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    lines += [r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi", ""]
    lines += [rf"{{\footnotesize \textsuperscript{{{i}}} {latex_text(t)}\par}}" for i, t in enumerate(notes.texts, 1)]
    lines += [rf"{{\footnotesize {latex_text(t)}\par}}" for t in _legend(filled)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def records(filled: Filled) -> list[Block]:
    """One plain record a cell of numbers."""
    rows = []
    for row, cells in zip(filled.table.rows, filled.cells, strict=True):
        for column in filled.table.columns:
            cell = cells[column.key]
            if column.metric is None or (cell.published is None and cell.command is None):
                continue
            spread = cell.reproduced
            rows.append(
                {
                    "row": row.name,
                    "column": column.key,
                    "metric": column.metric,
                    "protocol": column.protocol,
                    "published": cell.published,
                    "source": cell.source,
                    "reproduced": spread.mean if spread else None,
                    "std": spread.std if spread else None,
                    "seeds": spread.count if spread else 0,
                    "difference": cell.difference,
                    "runs": [r.run for r in cell.results],
                    "commits": sorted({r.commit for r in cell.results}),
                    "old_code": sorted({module for r in cell.results for module in r.old_code}),
                    "missing": cell.missing,
                    "differs": cell.differs,
                    "command": cell.command,
                }
            )
    return rows


def as_csv(filled: Filled) -> str:
    """One line a cell, lists joined with spaces; the row's columns of text follow."""
    texts = [column.key for column in filled.table.columns if column.metric is None]
    facts = {row.name: {key: row.facts.get(key, "") for key in texts} for row in filled.table.rows}
    rows = [{**record, **facts[str(record["row"])]} for record in records(filled)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["row", "column"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(v) if isinstance(v, list) else ("" if v is None else v) for k, v in row.items()})
    return out.getvalue()


def as_json(filled: Filled) -> str:
    """Title, protocols and one record a cell."""
    table = filled.table
    value = {
        "table": table.name,
        "title": table.title,
        "note": table.note,
        "protocols": dict(table.protocols),
        "facts": {row.name: dict(row.facts) for row in table.rows},
        "cells": records(filled),
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def page(filled: Filled) -> str:
    """A self-contained page; runs and commits show on hover."""
    table = filled.table
    rows: list[Sequence[html.Cell]] = []
    for row, cells in zip(table.rows, filled.cells, strict=True):
        shown = [html.Cell(row.name, note=f"source: {row.source}" if row.source else None)]
        for column in table.columns:
            cell = cells[column.key]
            style = "missing" if cell.missing else ("number" if column.metric else None)
            shown.append(html.Cell(cell_text(cell, column), style, _note_of(cell, row)))
        rows.append(shown)
    header = ["", *(html.Cell(heading(c), note=c.protocol) for c in table.columns)]
    notes = [*_legend(filled), *missing(filled)]
    return html.render("table", title=table.title, header=header, rows=rows, notes=notes)


FORMATS: dict[str, Callable[[Filled], str]] = {
    "md": markdown,
    "tex": latex,
    "csv": as_csv,
    "html": page,
    "json": as_json,
}
