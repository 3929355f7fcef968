"""Renews the tables of docs/reproducing.md: every row that a run fills, what it needs, and the exact command.

`python -m tools.reproducing [--check]`. The page keeps its prose; what stands between `<!-- rows: TABLE -->` and
`<!-- end -->` is made from conf/table/, the headers of conf/experiment/ and the weights that each row's step needs.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from experiments.planning.pipeline import weights_of
from experiments.results.fill_commands import fill_arguments
from experiments.results.row_requests import RowRequests
from experiments.results.tables import Row, Table, read_table

PAGE = Path(__file__).parents[1] / "docs" / "reproducing.md"
_BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
#: Estimates for one A100 with 80 GB; experiments that are not here need no GPU.
GPU_HOURS = {
    "maskgit_imagenet256": "700", "maskgit_imagenet512": "3,000", "schedule_ablation": "4,900 for all rows",
    "maskgit_pytorch_imagenet256": "700, once for all rows, and 1", "official_imagenet256": "1",
    "official_imagenet512": "1",
    "halton_imagenet": "3", "halton_v1_imagenet": "2", "maskbit_imagenet": "7", "titok_imagenet": "2",
    "tokenizer_table": "1", "tokenizer_table_train": "1",
}  # fmt: skip


def command(row: Row) -> str:
    """The command that fills a row."""
    assert row.run is not None
    unset = RowRequests().unset(row.run)
    return " ".join(["maskgit run", *fill_arguments(row.run["experiment"], row.run.get("overrides", ()), unset)])


def needs(row: Row) -> str:
    """Published weights of a row's step and all above it, and the data that its command names."""
    assert row.run is not None
    asked = [f"experiment={row.run['experiment']}", *map(str, row.run.get("overrides", ()))]
    weights = weights_of(
        [*asked, *(f"{key}=unset" for key in RowRequests().unset(row.run))], row.run.get("step", "evaluate")
    )
    return f"`{' '.join(weights)}`" if weights else "nothing"


def published(table: Table, row: Row) -> str:
    """The published numbers of a row, each with its protocol."""
    by_protocol: dict[str, list[str]] = {}
    for column in table.columns:
        if column.key in row.published:
            title = column.title.partition(" (")[0]
            by_protocol.setdefault(str(column.protocol), []).append(f"{title} {row.published[column.key]:g}")
    return "; ".join(f"{', '.join(numbers)} ({protocol})" for protocol, numbers in by_protocol.items()) or "none"


def rows(name: str) -> str:
    """The Markdown table of all rows of a table that a run fills."""
    table = read_table(name)
    lines = ["| row | published (protocol) | weights | GPU-hours | command |", "|---|---|---|---|---|"]
    for row in table.rows:
        if row.run is not None:
            hours = GPU_HOURS.get(row.run["experiment"], "none")
            lines.append(f"| {row.name} | {published(table, row)} | {needs(row)} | {hours} | `{command(row)}` |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """The page with every block of rows made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{rows(found[2])}\n{found[3]}", text)


def main() -> int:
    """Writes the page, or says with `--check` whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where the page is not up to date"
    )
    args = parser.parse_args()
    before = PAGE.read_text()
    after = renewed(before)
    if args.check:
        return int(before != after)
    PAGE.write_text(after)
    print(f"{PAGE}: {len(_BLOCK.findall(after))} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
