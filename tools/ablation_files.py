"""A row a run and a chart of the rows: what the tools of the ablations read and write."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.results.plots import rendered
from experiments.results.results import Result, collect
from experiments.store.find import default_store
from maskgit_core.errors import ArtifactError
from maskgit_core.files import write_bytes

Table = Sequence[dict[str, Any]]


def rows_of(
    store: Path, experiment: str, row: Callable[[Result], dict[str, Any]], order: Callable[[dict[str, Any]], Any]
) -> list[dict[str, Any]]:
    """A row for each finished run of an experiment in a store, sorted by `order`.

    Raises:
        ArtifactError: there is no finished run of the experiment.
    """
    table = [row(result) for result in collect(store, ("scores",), experiment)]
    if not table:
        raise ArtifactError(f"{store}: holds no finished run; first run: maskgit run experiment={experiment}")
    return sorted(table, key=order)


def as_csv(table: Table, columns: Sequence[str]) -> str:
    """The rows with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def write(
    name: str,
    about: str,
    columns: Sequence[str],
    rows: Callable[[Path], Table],
    figure: Callable[[Table], Any],
    arguments: Sequence[str] | None = None,
) -> None:
    """Writes NAME.csv and NAME.png from the store that the command line names.

    Args:
        name: of both files. about: the tool in one line, for `--help`. columns: of the CSV file.
        rows: the rows of a store. figure: their chart.
        arguments: of the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(description=f"{about} as a CSV file and a chart")
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    asked = parser.parse_args(arguments)
    table = rows(asked.store.expanduser().absolute())
    write_bytes(asked.folder / f"{name}.csv", as_csv(table, columns).encode())
    write_bytes(asked.folder / f"{name}.png", rendered(figure(table), "png"))
    print(f"wrote {len(table)} runs to {asked.folder}/{name}.csv and .png")
