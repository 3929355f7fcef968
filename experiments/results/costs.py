"""The costs of a table's rows: a column of GPU-hours, or of hours where no GPU was used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from experiments.results.comparison import UNSET, Side
from experiments.results.results import Result
from experiments.results.tables import Cell, Column, Filled

KEY = "hours"


def with_costs(filled: Filled) -> Filled:
    """The table with a last column of what each row took: all attempts of its runs and of what they were made from.

    A step that several rows share is in each of them; the table's note has the sum with each step once.
    """
    groups = [_results(row.values()) for row in filled.cells]
    spent = [Side("", group).hours if group else None for group in groups]
    on_gpus = any(hours is not None and hours[1] for hours in spent)
    every = {r.folder: r for group in groups for r in group}
    total = Side("", tuple(every.values())).hours if every else (0.0, 0.0)
    unit = "GPU-hours" if on_gpus else "hours (no GPU)"
    told = f"{unit}: every attempt of a row's runs and of all they were made from; {total[on_gpus]:.2f} for all rows, "
    note = " ".join([*([filled.table.note] if filled.table.note else []), f"{told}each step counted once"])
    texts = [UNSET if hours is None else f"{hours[on_gpus]:.2f}" for hours in spent]
    rows = (replace(r, facts={**r.facts, KEY: text}) for r, text in zip(filled.table.rows, texts, strict=True))
    table = replace(filled.table, columns=(*filled.table.columns, Column(KEY, unit)), rows=tuple(rows), note=note)
    cells: list[Mapping[str, Cell]] = [
        {**row, KEY: Cell(text=text)} for row, text in zip(filled.cells, texts, strict=True)
    ]
    return replace(filled, table=table, cells=tuple(cells))


def _results(cells: Iterable[Cell]) -> tuple[Result, ...]:
    """The runs behind a row, each once."""
    return tuple({result.folder: result for cell in cells for result in cell.results}.values())
