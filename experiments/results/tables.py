"""Paper tables: published numbers beside reproduced ones, each under its protocol and traced to its runs.

`conf/table/NAME.yaml`:

    title, note
    source: where the published numbers are (a row may name another)
    protocols: {name: what it means}     protocols of published numbers that conf/protocol/ does not hold
    columns:   {fid: {metric: fid, protocol: adm, digits: 2}, params: {text: Parameters}}
               published_only: true where a number was measured in a way that is not offered here
    rows:
      - name: MaskGIT
        facts: {params: 227M}            text columns
        published: {fid: 6.18}
        run: {experiment: NAME, step: evaluate, where: {sampler.num_steps: 8}, overrides: [sampler.num_steps=8]}

A reproduced cell holds the results whose experiment, step and `where` match and whose request is that of the experiment
with the row's overrides in every other value, over their seeds; where a run differs in more, the cell says in what.
Numbers of unlike protocols never share a column: where two rows were measured differently the table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from experiments.config.compose import CONF, group_names
from experiments.results.fill_commands import fill_arguments
from experiments.results.results import Filter, Result, Spread, collect, select
from experiments.store.scores import METRICS, PREFIXES, Score, describe_metric, unlike
from experiments.store.typed_json import Block, Options
from maskgit_core.errors import ConfigError, suggestion, unknown_key, unknown_name

KEYS = ("title", "note", "source", "protocols", "columns", "rows")
COLUMN_KEYS = ("metric", "protocol", "digits", "title", "text", "published_only")
ROW_KEYS = ("name", "facts", "published", "source", "run", "note")
RUN_KEYS = ("experiment", "step", "where", "overrides")


@dataclass(frozen=True)
class Column:
    """One metric under one protocol, or a column of text."""

    key: str
    title: str
    metric: str | None = None
    protocol: str | None = None
    digits: int = 2
    lower_is_better: bool | None = None
    published_only: bool = False  # measured in a way that is not offered here


@dataclass(frozen=True)
class Row:
    """A method as published, and what would reproduce it."""

    name: str
    facts: Mapping[str, str]
    published: Mapping[str, float]
    source: str | None
    note: str | None
    run: Options | None

    def command(self) -> str | None:
        """The command that fills this row, if any experiment does."""
        if self.run is None:
            return None
        return " ".join(["maskgit run", *fill_arguments(self.run["experiment"], self.run.get("overrides", ()))])


@dataclass(frozen=True)
class Table:
    """A table as described in its file."""

    name: str
    title: str
    note: str | None
    protocols: Mapping[str, str]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Cell:
    """Published and reproduced, and where the latter came from; or why it is missing."""

    published: float | None = None
    source: str | None = None
    reproduced: Spread | None = None
    results: tuple[Result, ...] = ()
    scores: tuple[Score, ...] = ()  # one of each result
    missing: str | None = None  # why, and the command that would fill it
    differs: str | None = None  # by what the runs there are differ from what the row asks for
    command: str | None = None
    text: str | None = None

    @property
    def difference(self) -> float | None:
        """Reproduced minus published."""
        if self.published is None or self.reproduced is None:
            return None
        return self.reproduced.mean - self.published


class Requests(Protocol):
    """Requests of a table's rows; see `RowRequests`."""

    def command(self, run: Options, /) -> str:
        """The whole command, with a word in capitals or `...` for what the user must give."""

    def absent(self, run: Options, /) -> Sequence[str]:
        """Published weights that are not on this machine."""

    def differences(self, run: Options, result: Result, /) -> Sequence[str]:
        """Values by which a result differs from what is asked."""


@dataclass(frozen=True)
class Filled:
    """A table with a cell for every row and column."""

    table: Table
    cells: tuple[Mapping[str, Cell], ...] = field(default=())


# -- reading ----------------------------------------------------------------------------------------------------------
def table_names(config_dirs: Sequence[Path] = ()) -> list[str]:
    """The tables there are."""
    return group_names("table", config_dirs)


def read_table(name: str, config_dirs: Sequence[Path] = ()) -> Table:
    """Reads and checks `conf/table/NAME.yaml`.

    Raises:
        ConfigError: no such table, an unknown key, metric or protocol, a number without a source.
    """
    import yaml

    if name not in (names := table_names(config_dirs)):
        raise unknown_name("table", name, names, "table")
    path = next(p for d in (CONF, *config_dirs) if (p := Path(d) / "table" / f"{name}.yaml").is_file())
    key = f"table {name}"
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())[:200]})") from None
    data = _mapping(data, key, KEYS)
    protocols = {str(k): str(v) for k, v in _mapping(data.get("protocols"), f"{key}.protocols").items()}
    known = {*protocols, *group_names("protocol", config_dirs)}
    columns = tuple(_column(k, v, f"{key}.columns.{k}", known) for k, v in _mapping(data.get("columns"), key).items())
    if not columns or not data.get("rows"):
        raise ConfigError(f"{key}: needs at least one column and one row")
    rows = tuple(_row(r, f"{key}.rows[{i}]", columns, data.get("source")) for i, r in enumerate(data["rows"]))
    return Table(name, str(data.get("title") or name), data.get("note"), protocols, columns, rows)


def _mapping(value: Any, key: str, allowed: Sequence[str] | None = None) -> Block:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: found {value!r}; it must be a mapping")
    for inner in value:
        if allowed is not None and inner not in allowed:
            raise unknown_key(f"{key}.{inner}", str(inner), allowed)
    return {str(k): v for k, v in value.items()}


def _column(name: str, value: Any, key: str, protocols: set[str]) -> Column:
    block = _mapping(value, key, COLUMN_KEYS)
    if "text" in block:
        return Column(name, str(block["text"]))
    metric, protocol = str(block.get("metric", name)), block.get("protocol")
    known = describe_metric(metric)
    if known is None:
        names = [*METRICS, *(f"{p}NETWORK" for p in PREFIXES)]
        raise ConfigError(
            f"{key}.metric: there is no metric {metric!r}; {suggestion(metric, names)}One of [{', '.join(names)}]"
        )
    if protocol is None:
        raise ConfigError(f"{key}.protocol: missing; a number means nothing without one of [{', '.join(protocols)}]")
    if protocol not in protocols:
        raise unknown_name(f"{key}.protocol", str(protocol), protocols, "protocol")
    title = str(block.get("title", known[0]))
    return Column(name, title, metric, str(protocol), int(block.get("digits", 2)), known[1],
                  bool(block.get("published_only")))  # fmt: skip


def _row(value: Any, key: str, columns: Sequence[Column], source: Any) -> Row:
    block = _mapping(value, key, ROW_KEYS)
    names = [c.key for c in columns if c.metric]
    published = _mapping(block.get("published"), f"{key}.published", names)
    for column, number in published.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{key}.published.{column}: found {number!r}; it must be a number")
    stated = block.get("source") or source
    if published and not stated:
        raise ConfigError(
            f"{key}.published.{next(iter(published))}: has no source; add source: to the row or the table"
        )
    run = _mapping(block.get("run"), f"{key}.run", RUN_KEYS) or None
    if run is not None and "experiment" not in run:
        raise ConfigError(f"{key}.run.experiment: missing; name the experiment that fills this row")
    facts = _mapping(block.get("facts"), f"{key}.facts", [c.key for c in columns if not c.metric])
    return Row(
        name=str(block.get("name") or key),
        facts={k: str(v) for k, v in facts.items()},
        published={k: float(v) for k, v in published.items()},
        source=str(stated) if stated else None,
        note=block.get("note"),
        run=run,
    )


# -- filling ----------------------------------------------------------------------------------------------------------
def fill(
    table: Table,
    store: Path,
    requests: Requests | None = None,
    *,
    filters: Sequence[Filter] = (),
    run: str | None = None,
) -> Filled:
    """Looks the reproduced numbers up in the store.

    Args:
        requests: what the rows ask for; only a run of just that fills a cell. None: it is not compared.
        filters, run: take these runs, whatever else the rows ask for; each way in which they differ is a row.

    Raises:
        ConfigError: numbers of one column were measured under unlike protocols; a filter or run that nothing has.
    """
    results = select(collect(store), filters)
    if run is not None:
        results = [r for r in results if r.run.startswith(run) or r.fingerprint.startswith(run)]
        if not results:
            raise ConfigError(
                f"--run {run}: no finished evaluation has this uid or fingerprint; maskgit status lists them"
            )
    rows = [one for row in table.rows for one in _filled_rows(row, results, requests, bool(filters or run))]
    told = [(row, _plain(row, chosen), differs) for row, chosen, differs in rows]
    cells = [{c.key: _cell(r, c, chosen, requests, differs) for c in table.columns} for r, chosen, differs in told]
    for column in table.columns:
        _refuse_unlike(table, column, [row[column.key] for row in cells])
    return Filled(replace(table, rows=tuple(row for row, _, _ in rows)), tuple(cells))


def _filled_rows(
    row: Row, results: Sequence[Result], requests: Requests | None, is_chosen: bool
) -> list[tuple[Row, Sequence[Result], str | None]]:
    """A row with the results that fill it, or their differences from it; of chosen runs a row for each way."""
    candidates = _results_of(row, results)
    if requests is None or row.run is None or not candidates:
        return [(row, candidates, None)]
    ways: dict[tuple[str, ...], list[Result]] = {}
    for result in candidates:
        ways.setdefault(tuple(requests.differences(row.run, result)), []).append(result)
    if is_chosen:
        named = {way: f"{row.name} ({_few(way)})" if way else row.name for way in ways}
        return [(replace(row, name=named[way]), group, None) for way, group in ways.items()]
    differs = None if () in ways else f"differs: {_few(min(ways, key=len))}"
    return [(row, ways.get((), []), differs)]


def _few(lines: Sequence[str]) -> str:
    return ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")


def _results_of(row: Row, results: Sequence[Result]) -> list[Result]:
    if row.run is None:
        return []
    step = row.run.get("step", "evaluate")
    own = [r for r in results if r.experiment == row.run["experiment"] and r.step == step]
    where = [Filter(str(k), "=", str(v)) for k, v in (row.run.get("where") or {}).items()]
    return [r for r in own if all(f.matches(r) for f in where)]


def _plain(row: Row, results: Sequence[Result]) -> Sequence[Result]:
    """The experiment itself goes before points of sweeps over something the row does not name."""
    named = set((row.run or {}).get("where") or {})
    return [r for r in results if all(k in named or k.endswith(".seed") for k in r.params)] or results


def _cell(row: Row, column: Column, results: Sequence[Result], requests: Requests | None, differs: str | None) -> Cell:
    if column.metric is None:
        return Cell(text=row.facts.get(column.key))
    published, command = row.published.get(column.key), None if column.published_only else row.command()
    if command is not None and requests is not None and row.run is not None:
        command = requests.command(row.run)
    base = Cell(published, row.source if published is not None else None, command=command)
    if command is None or row.run is None:
        return base
    if differs is not None:
        return replace(base, differs=differs, missing=f"{column.title} of {row.name}: {differs}; {command}")
    scored = [(r, s) for r in results for s in r.scores if s.key == column.metric]
    fitting = [(r, s) for r, s in scored if s.protocol == column.protocol]
    if not fitting:
        why = "not run yet"
        if scored:
            others = ", ".join(sorted({s.protocol or "unnamed" for _, s in scored}))
            why = f"measured under {others}, not {column.protocol}"
        elif requests is not None and (lacking := requests.absent(row.run)):
            why, command = f"needs {', '.join(lacking)}", f"maskgit weights fetch {' '.join(lacking)} && {command}"
        return replace(base, missing=f"{column.title} of {row.name}: {why}; {command}")
    if len({r.without_seeds for r, _ in fitting}) > 1:
        keys = _differing([r for r, _ in fitting])
        return replace(
            base,
            missing=f"{column.title} of {row.name}: {len(fitting)} runs match and differ in {keys}; "
            "narrow run.where, or choose with --where or --run",
        )
    if len({r.code for r, _ in fitting}) > 1:
        changed = sorted({module for r, _ in fitting for module in r.old_code})
        return replace(
            base,
            missing=f"{column.title} of {row.name}: {len(fitting)} runs were made by different code "
            f"({_few(changed)}), so they are not averaged; {command}",
        )
    results, scores = (tuple(some) for some in zip(*fitting, strict=True))
    return replace(
        base, reproduced=Spread.of([s.value for s in scores]), results=results, scores=scores, command=command
    )


def _differing(results: Sequence[Result]) -> str:
    keys = sorted({k for r in results for k, _ in r.without_seeds})
    differing = [k for k in keys if len({dict(r.without_seeds).get(k) for r in results}) > 1]
    return ", ".join(differing[:4])


def _refuse_unlike(table: Table, column: Column, cells: Sequence[Cell]) -> None:
    first: tuple[Result, Score] | None = None
    for cell in cells:
        for result in cell.results:
            score = result.score(str(column.metric), column.protocol)
            assert score is not None
            if first is None:
                first = (result, score)
            elif why := unlike(first[1], score):
                raise ConfigError(
                    f"table {table.name}, column {column.key}: {first[0].run} and {result.run} are not comparable "
                    f"({why}); evaluate both under one protocol, or give them columns of their own"
                )


def missing(filled: Filled) -> list[str]:
    """Every cell that could be filled and is not, with why and the command."""
    return [c.missing for row in filled.cells for c in row.values() if c.missing]
