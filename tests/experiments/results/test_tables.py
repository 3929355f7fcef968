"""Tables: published beside reproduced, traced to runs; unlike numbers are refused, missing cells named."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from tracked_store import TrackedStore, write_scores

from experiments.commands import table as command
from experiments.config.compose import CONF
from experiments.results.comparison import compare
from experiments.results.results import Filter, Spread, collect
from experiments.results.table_formats import FORMATS, latex, latex_text
from experiments.results.tables import fill, missing, read_table, table_names
from experiments.store.documents import Manifest
from experiments.tracking.run_facts import results
from maskgit_core.errors import ConfigError

TABLE = {
    "title": "A table",
    "source": "Somebody et al., Table 1",
    "protocols": {"mine": "how I measure"},
    "columns": {"steps": {"text": "Steps"}, "fid": {"metric": "fid", "protocol": "mine", "digits": 2}},
    "rows": [
        {
            "name": "Ours & <b>theirs</b> | 50%",
            "facts": {"steps": "8"},
            "published": {"fid": 6.18},
            "run": {"experiment": "toy", "where": {"sampler.scale": 2}, "overrides": ["sampler.scale=2"]},
        },
        {"name": "Other", "published": {"fid": 7.0}},
    ],
}


def described(tmp_path, **changes) -> Path:
    place = tmp_path / "lab" / "table"
    place.mkdir(parents=True, exist_ok=True)
    (place / "mine.yaml").write_text(yaml.safe_dump({**TABLE, **changes}))
    return tmp_path / "lab"


def evaluation(store: TrackedStore, scale=2, seed=0, value=6.2, protocol="mine", details=None, swept=True, count=5):
    params = {"sampler.scale": scale, "train.seed": seed} if swept else {}
    name = f"train[{seed},{scale}]"
    store.step(name, "train", "model", {"seed": seed, "for": scale}, (), params)
    entry = store.steps[-1]
    config = {"sampler": {"name": "s", "scale": scale}}
    folder = store.step(f"evaluate[{seed},{scale}]", "evaluate", "scores", config, [entry["fingerprint"]], params)
    own = store.attempt(folder)
    write_scores(own / "files", protocol, details or {"reference": "val"}, count, fid=value)
    store.done(folder, headline={"name": "fid", "value": value, "protocol": {"name": protocol}})
    return folder


@pytest.fixture
def store(tmp_path):
    return TrackedStore(tmp_path / "store")


def filled(tmp_path, store, **changes):
    return fill(read_table("mine", [described(tmp_path, **changes)]), store.root)


def test_mean_and_deviation_over_seeds_and_the_difference_to_the_published(tmp_path, store):
    for seed, value in enumerate((6.0, 6.2, 6.4)):
        evaluation(store, seed=seed, value=value)
    evaluation(store, scale=3, value=99.0)
    cell = filled(tmp_path, store).cells[0]["fid"]
    assert (cell.reproduced.count, round(cell.reproduced.mean, 9), round(cell.reproduced.std, 9)) == (3, 6.2, 0.2)
    assert cell.difference == pytest.approx(0.02)
    assert {r.run for r in cell.results} == {f"{store.uid}/evaluate[{s},2]" for s in range(3)}


def test_reconstructions_beside_samples_are_another_number(tmp_path, store):
    """An evaluation repeats what its tokenizer reached: never averaged with the samples, nor shown in their place."""
    folder = evaluation(store)
    path = folder / "attempts" / "0001" / "files" / "scores.json"
    told = json.loads(path.read_text())
    told["scores"] += [{**told["scores"][0], "of": "reconstructions", "value": 2.0}]
    path.write_text(json.dumps(told))
    cell = filled(tmp_path, store).cells[0]["fid"]
    assert (cell.reproduced.mean, cell.reproduced.count) == (6.2, 1)
    (result,) = collect(store.root)
    assert (result.value("fid"), result.value("fid/reconstructions")) == (6.2, 2.0)
    rows = {row.title: row.values["evaluate[scale=2]"].mean for row in compare([result]).metrics}
    assert rows == {"fid": 6.2, "fid/reconstructions (FID)": 2.0}
    points = results(folder, Manifest.needed(folder))
    assert {p.metric: p.value for p in points} == {"fid": 6.2, "fid/reconstructions": 2.0}


def test_every_format_carries_value_difference_run_and_commit(tmp_path, store):
    evaluation(store, value=6.2)
    evaluation(store, seed=1, value=6.4)
    made = {name: write(filled(tmp_path, store)) for name, write in FORMATS.items()}
    for name, text in made.items():
        assert "6.18" in text and f"{store.uid}/evaluate[0,2]" in text.replace("\\_", "_"), name
        assert "c" * 12 in text and "Somebody et al." in text, name
    assert "6.18 / 6.30 ± 0.14 (+0.12)" in made["md"]
    assert r"6.18 / 6.30 $\pm$ 0.14 (+0.12)" in made["tex"] and r"\toprule" in made["tex"]
    assert r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}" in made["tex"], "no wider than its column"
    rows = list(csv.DictReader(io.StringIO(made["csv"])))
    assert (
        float(rows[0]["reproduced"]) == pytest.approx(6.3) and rows[0]["seeds"] == "2" and rows[1]["reproduced"] == ""
    )
    cells = json.loads(made["json"])["cells"]
    assert cells[0]["commits"] == ["c" * 40] and cells[0]["protocol"] == "mine"


def test_names_are_escaped_in_every_format(tmp_path, store):
    made = {name: write(filled(tmp_path, store)) for name, write in FORMATS.items()}
    assert "Ours &amp; &lt;b&gt;theirs&lt;/b&gt; | 50%" in made["html"]
    assert r"Ours \& <b>theirs</b> | 50\%" in made["tex"]
    assert r"Ours & <b>theirs</b> \| 50%" in made["md"]
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)
    parser.feed(made["html"])
    assert "b" not in seen and "script" not in seen
    assert latex_text("a_b\\{}~^$#") == r"a\_b\textbackslash{}\{\}\textasciitilde{}\textasciicircum{}\$\#"


def test_a_missing_cell_is_named_with_the_command_that_fills_it(tmp_path, store):
    store.write()
    (text,) = missing(filled(tmp_path, store))
    assert text.endswith("not run yet; maskgit run experiment=toy sampler.scale=2") and text.startswith("FID of Ours")


def test_a_number_under_another_protocol_does_not_fill_the_cell(tmp_path, store):
    evaluation(store, protocol="theirs")
    (text,) = missing(filled(tmp_path, store))
    assert "measured under theirs, not mine" in text


def test_runs_that_differ_in_more_than_seeds_are_not_averaged(tmp_path, store):
    rows = [{**TABLE["rows"][0], "run": {"experiment": "toy", "where": {"train.seed": 0}}}]
    evaluation(store, scale=2)
    evaluation(store, scale=3)
    (text,) = missing(filled(tmp_path, store, rows=rows))
    assert "2 runs match and differ in sampler.scale, train.for; narrow run.where" in text


def test_the_plain_experiment_goes_before_points_of_a_sweep(tmp_path, store):
    rows = [{**TABLE["rows"][0], "run": {"experiment": "toy"}}]
    evaluation(store, scale=2, value=6.0, swept=False)
    evaluation(store, scale=3, value=9.0)
    assert filled(tmp_path, store, rows=rows).cells[0]["fid"].reproduced == Spread(6.0, None, 1)


@pytest.mark.parametrize(
    ("second", "why"),
    [({"details": {"reference": "train"}}, "reference: val, train"), ({"count": 9}, "num_images: 5, 9")],
)
def test_unlike_numbers_never_share_a_column(tmp_path, store, second, why):
    rows = [{"name": str(s), "run": {"experiment": "toy", "where": {"sampler.scale": s}}} for s in (2, 3)]
    evaluation(store, scale=2)
    evaluation(store, scale=3, **second)
    with pytest.raises(ConfigError, match=re.escape(why)) as caught:
        filled(tmp_path, store, rows=rows)
    assert str(caught.value).startswith("table mine, column fid: ")


def column(**changes):
    return {"columns": {"fid": {"metric": "fid", "protocol": "mine", **changes}, "steps": {"text": "Steps"}}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (column(metric="fjd"), "table mine.columns.fid.metric: there is no metric 'fjd'"),
        (column(protocol="yours"), "table mine.columns.fid.protocol: there is no protocol 'yours'"),
        ({"columns": {"fid": {"metric": "fid"}}}, "table mine.columns.fid.protocol: missing"),
        ({"source": None}, r"table mine.rows\[0\].published.fid: has no source; add source"),
        (
            {"rows": [{"name": "x", "published": {"fdi": 1}}]},
            r"table mine.rows\[0\].published.fdi: unknown key; did you",
        ),
        ({"rows": [{"name": "x", "published": {"fid": "6"}}]}, r"rows\[0\].published.fid: found '6'"),
        ({"rows": [{"name": "x", "run": {}, "publish": 1}]}, r"rows\[0\].publish: unknown key; did you mean published"),
        ({"rows": [{"name": "x", "run": {"step": "s"}}]}, r"rows\[0\].run.experiment: missing"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, changes, text):
    with pytest.raises(ConfigError, match=text) as caught:
        read_table("mine", [described(tmp_path, **changes)])
    assert "\n" not in str(caught.value)


def test_an_unknown_table_suggests_the_nearest(tmp_path, capsys):
    with pytest.raises(ConfigError, match="table: there is no table 'quickstar'; did you mean quickstart"):
        read_table("quickstar")


@pytest.mark.parametrize("name", table_names())
def test_every_shipped_table_reads_and_names_experiments_that_exist(name, tmp_path):
    table = read_table(name)
    for row in table.rows:
        assert row.source or not row.published
        if row.run:
            assert (CONF / "experiment" / f"{row.run['experiment']}.yaml").is_file(), row.name
    for write in FORMATS.values():
        assert write(fill(table, tmp_path))


def test_rows_that_can_be_reproduced_without_training():
    """A published figure, a run without a training step, and every file it reads in the registry with its licence."""
    from experiments.planning.pipeline import with_upstream
    from maskgit_core.weights.registry import registry

    found = []
    for name in table_names():
        for row in read_table(name).rows:
            if row.run is None or not row.published:
                continue
            asked = [f"experiment={row.run['experiment']}", *row.run.get("overrides", ())]
            requests = with_upstream(asked, str(row.run.get("step", "evaluate")))
            if any(request.stage.startswith("train") for request in requests):
                continue
            known = [registry()[weight] for request in requests for weight in request.weights.values()]
            if known and all(entry.source and entry.licence for entry in known):
                assert row.source and row.command()
                found.append((name, row.name))
    assert len(found) >= 55, found
    assert not {"maskgit_schedules", "quickstart"} & {name for name, _ in found}, "they train"


#: Figures that must stand in the shipped tables, as (table, row, column) -> published.
GOLDEN = {
    ("maskgit_imagenet256", "MaskGIT", "fid"): 6.18,
    ("maskgit_imagenet256", "MaskGIT", "precision"): 0.80,
    ("maskgit_imagenet256", "MaskGIT", "precision_inception"): 0.78,
    ("maskgit_imagenet512", "MaskGIT", "fid"): 7.32,
    ("maskgit_schedules", "Cosine", "fid"): 6.06,
    ("maskgit_pytorch_guidance", "linear-r 3.0", "is"): 222.72,
    ("halton_models", "Large 384", "fid"): 2.59,
    ("tokenizers", "LlamaGen VQ-16", "psnr"): 20.79,
    ("maskbit", "14 bits, 256 steps", "fid"): 1.52,
    ("maskbit_tokenizers", "MaskBit (18 bits)", "fid"): 1.16,
    ("titok", "TiTok-S-128", "fid"): 1.97,
    ("titok_tokenizers", "TiTok-SL-256 VQ", "rfid"): 1.03,
    ("voken_tokenizers", "Open-MAGVIT2", "fid"): 1.17,
    ("voken_tokenizers", "IBQ 262144", "fid"): 1.00,
    ("halton_v1", "512 x 512", "fid"): 7.26,
}


@pytest.mark.parametrize(("place", "value"), GOLDEN.items(), ids=[f"{t}-{c}" for t, _, c in GOLDEN])
def test_published_figures(place, value):
    name, row, column_name = place
    (found,) = [r for r in read_table(name).rows if r.name == row]
    assert found.published[column_name] == value


def test_the_command_prints_writes_and_lists(tmp_path, store, capsys):
    import argparse

    evaluation(store)
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    lab = str(described(tmp_path))
    base = ["--store", str(store.root), "--config-dir", lab]
    assert command.main(parser.parse_args(["mine", *base])) == 0
    printed = capsys.readouterr().out
    assert "6.18 / differs: its experiment cannot be composed (experiment: there is no experiment 'toy'" in printed
    out = tmp_path / "t.tex"
    assert command.main(parser.parse_args(["mine", *base, "--format", "tex", "-o", str(out)])) == 0
    assert "booktabs" in out.read_text()
    assert command.main(parser.parse_args(base)) == 0
    assert "maskgit_imagenet256" in capsys.readouterr().out


def test_results_know_the_values_that_led_to_them(store):
    evaluation(store, scale=2, seed=3)
    (result,) = collect(store.root)
    assert result.config["sampler.scale"] == "2" and result.config["train.seed"] == "3"
    assert result.value("fid") == 6.2 and result.value("experiment") == "toy"


class Judge:
    """Rows that ask for `sampler.scale: 2` alone."""

    def command(self, run) -> str:
        return "maskgit run experiment=toy"

    def absent(self, run) -> list[str]:
        return []

    def differences(self, run, result) -> list[str]:
        scale = result.config["sampler.scale"]
        return [] if scale == "2" else [f"sampler.scale {scale} (not 2)"]


def test_chosen_runs_fill_rows_that_say_by_what_they_differ(tmp_path, store):
    rows = [{**TABLE["rows"][0], "run": {"experiment": "toy"}}]
    table = read_table("mine", [described(tmp_path, rows=rows)])
    evaluation(store, scale=2, value=6.0)
    evaluation(store, scale=3, value=9.0)
    name = table.rows[0].name
    plain = fill(table, store.root, Judge())
    assert [row.name for row in plain.table.rows] == [name] and plain.cells[0]["fid"].reproduced.mean == 6.0
    chosen = fill(table, store.root, Judge(), filters=[Filter.read("sampler.scale=3")])
    assert [row.name for row in chosen.table.rows] == [f"{name} (sampler.scale 3 (not 2))"]
    assert chosen.cells[0]["fid"].reproduced.mean == 9.0
    both = fill(table, store.root, Judge(), run=store.uid)
    assert len(both.table.rows) == len(both.cells) == 2, "each way a row of its own"
    with pytest.raises(ConfigError, match="no finished evaluation has this uid"):
        fill(table, store.root, Judge(), run="nothing")


def test_a_printed_table_has_one_footnote_for_all_missing_cells(tmp_path, store):
    text = latex(filled(tmp_path, store))
    assert text.count("not reproduced here") == 1 and r"\label{tab:mine}" in text and r"\toprule" in text
