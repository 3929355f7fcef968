"""Comparisons: what differs, metrics lined up only where they may be, filters, seeds, charts."""

import argparse
import json

import pytest
from tracked_store import T0, TrackedStore, lines, write_scores

from experiments.commands import compare as command
from experiments.results.comparison import as_rows, chart_of, compare, page
from experiments.results.plots import Line, Mark, panels, pareto_front, thin
from experiments.results.results import Filter, Spread, by_seed, collect, select
from experiments.store.documents import Launch, Record, Request
from maskgit_core.errors import ConfigError


@pytest.fixture
def store(tmp_path):
    """A sweep of guidance x seed with FID and IS, all under one protocol."""
    made = TrackedStore(tmp_path / "store")
    for scale in (1.0, 2.0, 3.0):
        for seed in (0, 1):
            params = {"sampler.scale": scale, "train.seed": seed}
            model = made.step(f"train[{seed}]", "train", "model", {"seed": seed, "lr": 1e-4}, (), params)
            identity = made.steps[-1]["fingerprint"]
            own = made.attempt(model)
            lines(own / "journal.jsonl", [(i, {"loss/low": 1.0 / (i + 1 + seed)}) for i in range(5)], int(T0 * 1000))
            made.done(model)
            config = {"sampler": {"name": "s", "scale": scale}}
            folder = made.step(f"evaluate[{scale},{seed}]", "evaluate", "scores", config, [identity], params)
            scores = {"fid": 10 - scale + seed / 10, "inception_score": 100 * scale - 50 * (scale == 3.0) - 200 * 0}
            write_scores(made.attempt(folder) / "files", "p", {"reference": "val"}, **scores)
            made.done(folder)
    return made


def other(store: TrackedStore, protocol="p", details=None, count=5):
    folder = store.step("evaluate_other", "evaluate", "scores", {"x": [protocol, count]})
    write_scores(store.attempt(folder) / "files", protocol, details or {"reference": "train"}, count, fid=1.0)
    store.done(folder)


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return parser.parse_args(arguments)


def test_runs_that_differ_only_in_seeds_are_one_side_with_their_spread(store):
    found = compare(collect(store.root))
    assert [len(s.results) for s in found.sides] == [2, 2, 2]
    assert set(found.differing) == {"sampler.scale"}
    fid = next(r for r in found.metrics if r.title.startswith("fid"))
    spread = fid.values["evaluate[scale=1.0]"]
    assert (spread.count, round(spread.mean, 6), round(spread.std, 6)) == (2, 9.05, 0.070711)
    each = compare(collect(store.root), group_seeds=False)
    assert len(each.sides) == 6 and "train.seed" in each.differing


def test_runs_of_different_code_are_never_averaged(store):
    (entry,) = [e for e in store.steps if e["name"] == "evaluate[1.0,1]"]
    folder = store.root / entry["folder"]
    launch = Launch(name="evaluate", step="evaluate", experiment="toy", pipeline=store.uid)
    science = {"maskgit_core.samplers.halton": {"sha256": "0" * 64, "code": "0" * 64}}
    request = Request.needed(folder)
    Record(request=request, launch=launch, science_files=science, started=0.0, ended=1.0).write(folder)
    found = compare(collect(store.root))
    assert sorted(len(side.results) for side in found.sides) == [1, 1, 2, 2]
    (note,) = found.refused
    assert note.endswith("not averaged (made by different code: maskgit_core.samplers.halton)")


def test_numbers_of_different_protocols_are_not_lined_up(store):
    other(store)
    found = compare(collect(store.root))
    rows = [r for r in found.metrics if r.title.startswith("fid")]
    assert len(rows) == 2 and not set(rows[0].values) & set(rows[1].values)
    assert found.refused == ("fid: not lined up (reference: val, train)",)
    for row in as_rows(found):
        if row[0].startswith("fid"):
            assert "—" in row


def test_other_counts_of_images_are_another_measurement(store):
    other(store, details={"reference": "val"}, count=50)
    assert compare(collect(store.root)).refused == ("fid: not lined up (num_images: 5, 50)",)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("sampler.scale>1", 4),
        ("sampler.scale>=2.0", 4),
        ("train.lr=0.0001", 6),
        ("train.lr=1e-4", 6),
        ("fid<7.05", 1),
        ("train.seed!=0", 3),
        ("experiment=toy", 6),
        ("experiment=other", 0),
        ("sampler.name=s", 6),
    ],
)
def test_filters_compare_numbers_as_numbers(store, text, count):
    assert len(select(collect(store.root), [Filter.read(text)])) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampler.scal=1", "sampler.scal: no result has this key; did you mean sampler.scale"),
        ("sampler.name<3", "sampler.name: 's' and '3' have no order"),
    ],
)
def test_wrong_filters_are_one_line(store, text, message):
    with pytest.raises(ConfigError, match=message):
        select(collect(store.root), [Filter.read(text)])


def test_the_command_prints_json_page_and_chart(store, tmp_path, capsys):
    base = ["--store", str(store.root)]
    assert command.main(parsed("experiment=toy", "sampler.scale>1", *base)) == 0
    out = capsys.readouterr().out
    assert "evaluate[scale=2.0]" in out and "8.05 ± 0.07071 (n=2)" in out and "scale=1.0" not in out
    assert command.main(parsed("experiment=toy", "--json", *base)) == 0
    assert len(json.loads(capsys.readouterr().out)["sides"]) == 3
    where, chart = tmp_path / "c.html", tmp_path / "c.png"
    made = ["--html", str(where), "--plot", str(chart), "--x", "inception_score", "--y", "fid"]
    assert command.main(parsed("experiment=toy", *made, *base)) == 0
    assert where.read_text().count("data:image/svg+xml") == 2 and chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no step 'nothing'"),
        ([], "names no run"),
        (["experiment=none"], "no run matches"),
        (["experiment=toy", "--plot", "x.png"], "needs --x and --y"),
        (["experiment=toy", "--plot", "x.bmp", "--x", "fid", "--y", "fid"], "neither .png nor .svg"),
    ],
)
def test_bad_requests_are_one_line(store, arguments, message):
    with pytest.raises(ConfigError, match=message):
        command.main(parsed(*arguments, "--store", str(store.root)))


def test_page_and_chart_are_the_same_bytes_each_time(store):
    found = compare(collect(store.root))
    assert page(found, x="inception_score", y="fid") == page(found, x="inception_score", y="fid")
    assert chart_of(found, "sampler.scale", "fid", "png") == chart_of(found, "sampler.scale", "fid", "png")


def test_many_runs_stand_below_each_other(store):
    """Three sides are columns; six would run off the page and become rows."""
    few, many = (page(compare(collect(store.root), group_seeds=grouped)) for grouped in (True, False))
    assert "<th>sampler.scale</th>" not in few and "<td>sampler.scale</td>" in few
    assert "<th>sampler.scale</th>" in many and "<td>sampler.scale</td>" not in many


def test_pareto_front_keeps_exactly_what_nothing_beats():
    marks = [Mark("a", 1, 9), Mark("b", 2, 5), Mark("c", 3, 6), Mark("d", 4, 1), Mark("e", float("nan"), 0)]
    assert [m.label for m in pareto_front(marks)] == ["a", "b", "d"]
    assert [m.label for m in pareto_front(marks, lower_x=False)] == ["d"]
    for mark in marks[:4]:
        beaten = any(m.x <= mark.x and m.y <= mark.y and (m.x, m.y) != (mark.x, mark.y) for m in marks[:4])
        assert (mark in pareto_front(marks)) != beaten


def test_curves_share_panels_by_prefix_and_thin_keeps_the_ends(store):
    from experiments.store.journal import Point

    points = [Point("loss/low", i, 1.0, 0) for i in range(3)] + [Point("loss/high", i, 2.0, 0) for i in range(3)]
    arranged = panels({"run": [*points, Point("system/cpu", 1, 1.0, 0), Point("once", 1, 1.0, 0)]})
    assert list(arranged) == ["loss"] and [line.label for line in arranged["loss"]] == ["high", "low"]
    assert isinstance(arranged["loss"][0], Line)
    many = thin([(i, float(i)) for i in range(10_000)], 100)
    assert len(many) == 100 and many[0] == (0, 0.0) and many[-1] == (9999, 9999.0)


def test_a_single_value_has_no_deviation():
    assert Spread.of([2.0]) == Spread(2.0, None, 1)
    assert Spread.of([1.0, 3.0]).text(2) == "2.0 ± 1.4" and Spread.of([0.0]).text() == "0"


def test_grouping_by_seed_keeps_everything_once(store):
    results = collect(store.root)
    groups = by_seed(results)
    assert sorted(r.run for g in groups for r in g) == sorted(r.run for r in results) and len(groups) == 3


def test_the_last_row_is_the_bill_with_everything_upstream(store):
    """A training on eight GPUs that took two attempts, and its evaluation; shared by nobody else."""
    from maskgit_core.files import write_json

    results = [r for r in collect(store.root) if r.name.startswith("evaluate[1.0")]
    train = next(path for path in results[0].upstream)
    for number, until in ((1, 1800.0), (2, 5400.0)):
        own = store.attempt(train, number)
        resources = {"ranks": 8, "gpus_per_task": 1}
        write_json(own / "start.json", {"time": T0, "pipeline": "p", "attempt": number, "resources": resources})
        write_json(own / "end.json", {"state": "stopped", "time": T0 + until})
    store.done(train, 2, at=T0 + 5400.0)
    rows = as_rows(compare(results, group_seeds=False))
    assert rows[-1][0] == "GPU-hours, with all upstream"
    bills = dict(zip(rows[0][1:], rows[-1][1:], strict=True))
    assert sorted(bills.values(), key=float)[-1] == "16.00"
