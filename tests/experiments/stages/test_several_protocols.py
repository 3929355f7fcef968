"""One evaluation under several protocols: `protocol=[a,b]` on the command line, from the config to the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LAB, Maskgit

from experiments.config.further_protocols import with_further_protocols
from experiments.config.points import plan_configs
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError

COUNT = 45
TABLE = """\
title: toys
source: nobody
columns:
  first: {metric: fd_coarse, protocol: toy, digits: 3}
  fine: {metric: fd_coarse, protocol: toy_fine, digits: 3}
rows:
  - name: noise
    published: {first: 1.0, fine: 2.0}
    run:
      experiment: evaluate_samples
      overrides: ["protocol=[toy,toy_neighbours,toy_fine]", "plugins=[toylab]", "reference_statistics.num_images=60"]
"""
TOYS = ["plugins=[toylab]", "reference_statistics.num_images=60"]


@pytest.fixture
def sample_file(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    return tmp_path / "samples.npz"


def scores_of(store: Path) -> dict[str, Any]:
    """`scores.json` of the one evaluation in a store."""
    (path,) = store.glob("evaluate/*/files/scores.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_one_override_reports_every_protocol_and_passes_each_network_once(
    maskgit: Maskgit, store: Path, sample_file: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen.txt"
    asked = ["experiment=evaluate_samples", f"samples={sample_file}", *TOYS, "tracking.ship=false"]
    lab = ["--config-dir", str(LAB)]
    done = maskgit("run", *asked, "protocol=[toy,toy_neighbours,toy_fine]", *lab, env={"TOYLAB_SEEN": str(seen)})
    assert done.returncode == 0, done.stdout + done.stderr
    found = scores_of(store)
    rows = {(r["protocol"], r["name"], r["of"]): r["value"] for r in found["scores"]}
    assert {p for p, _, _ in rows} == set(found["protocols"]) == {"toy", "toy_neighbours", "toy_fine"}
    assert rows["toy", "fd_coarse", "samples"] == rows["toy_neighbours", "fd_coarse", "samples"]
    assert rows["toy", "fd_coarse", "samples"] != rows["toy_fine", "fd_coarse", "samples"]
    assert ("toy_neighbours", "precision_coarse", "samples") in rows
    assert ("toy", "precision_coarse", "samples") not in rows and (
        "toy_fine",
        "precision_coarse",
        "samples",
    ) not in rows
    assert found["protocols"]["toy_neighbours"]["metrics"]["precision_recall"] == {"neighbours": 5}
    passed: dict[str, int] = {}
    for line in seen.read_text().splitlines():
        side, number = line.split()
        passed[side] = passed.get(side, 0) + int(number)
    samples_and_floor = 2 * COUNT
    assert passed == {"7": 2 * 60 + samples_and_floor, "14": 60 + samples_and_floor}, "references, then once"
    assert len(list(store.glob("reference_statistics/*/manifest.json"))) == 3, (
        "statistics are artifacts, one a protocol"
    )

    (tmp_path / "mine" / "table").mkdir(parents=True)
    (tmp_path / "mine" / "table" / "toys.yaml").write_text(TABLE)
    shown = maskgit("table", "toys", "--format", "csv", *lab, "--config-dir", str(tmp_path / "mine"))
    for protocol in ("toy", "toy_fine"):
        assert str(rows[protocol, "fd_coarse", "samples"]) in shown.stdout, shown.stdout + shown.stderr
    compared = json.loads(maskgit("compare", "evaluate_samples/evaluate", "--json").stdout)
    lines = {(m["metric"], m["protocol"]) for m in compared["metrics"]}
    assert {p for _, p in lines if p.startswith("toy")} >= {f"{p}, {COUNT} images" for p in ("toy", "toy_fine")}

    alone = maskgit("run", *asked, "protocol=toy_fine", *lab)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert len(list(store.glob("reference_statistics/*/manifest.json"))) == 3, "the protocol alone finds its reference"
    both = [json.loads(p.read_text()) for p in store.glob("evaluate/*/files/scores.json")]
    single = next(s for s in both if set(s["protocols"]) == {"toy_fine"})
    together = [r for r in found["scores"] if r["protocol"] == "toy_fine"]
    assert single["scores"] == together and single["protocols"]["toy_fine"] == found["protocols"]["toy_fine"]


def graph(*overrides: str) -> Any:
    """The plan of the sample evaluation without reading anything from outside."""
    given = ["experiment=evaluate_samples", "samples=x.npz", "plugins=[toylab]", "paths.store=/nonexistent/store"]
    return build([*given, *overrides], [LAB], lambda key, value, mark: f"{key}={value}")


def test_the_first_protocol_keeps_its_steps() -> None:
    alone, both = graph("protocol=toy"), graph("protocol=[toy,toy_fine]")
    steps = {n.request.name: n for n in both.nodes.values()}
    assert set(steps) == {"reference", "reference_toy_fine", "evaluate"}
    assert steps["reference"].fingerprint in alone.nodes, "one more protocol re-addresses no reference"
    assert graph("protocol=[toy]").nodes.keys() == alone.nodes.keys(), "a list of one is that one"
    other = next(n for n in graph("protocol=toy_fine").nodes.values() if n.request.name == "reference")
    assert steps["reference_toy_fine"].fingerprint == other.fingerprint, "the same reference as on its own"


def test_what_is_set_for_a_network_holds_for_every_protocol_of_it() -> None:
    given = ["protocol=[toy,toy_neighbours,toy_fine]", "extractor.width=5", "reference.num_images=9"]
    steps = {n.request.name: n.request.config for n in graph(*given).nodes.values()}
    assert {steps[s]["extractor"]["width"] for s in steps} == {5}
    assert steps["reference_toy_fine"]["extractor"] == {"name": "coarse", "width": 5, "side": 14}
    assert {steps[s]["num_images"] for s in steps if s != "evaluate"} == {9}
    assert steps["evaluate"]["further_extractors.toy_fine"] == steps["reference_toy_fine"]["extractor"]
    back = {n.request.name: n.request.config for n in graph("protocol=[toy_fine,toy]").nodes.values()}
    assert back["reference_toy"]["extractor"]["side"] == 7, "what only the first protocol says stays with it"
    assert back["reference_toy"]["metrics"] == ["frechet"]


def test_published_statistics_serve_only_their_own_network() -> None:
    steps = {
        n.request.name: n.request
        for n in graph("protocol=[toy,toy_neighbours,toy_fine]", "reference_statistics.statistics=s.npz").nodes.values()
    }
    assert steps["reference_toy_neighbours"].content["statistics"] == "s.npz"
    assert "statistics" not in steps["reference_toy_fine"].content, "the dataset instead"
    given = graph("protocol=[toy,toy_fine]", "reference_statistics.statistics=s.npz",
                  "reference_toy_fine.statistics=fine.npz")  # fmt: skip
    own = next(n.request for n in given.nodes.values() if n.request.name == "reference_toy_fine")
    assert own.content["statistics"] == "fine.npz"


@pytest.mark.parametrize(
    ("experiment", "chosen"),
    [
        ("evaluate_samples", "[adm,clean,torch_fidelity,pytorch_fid]"),
        ("tokenizer_table", "[seed_rfid,clean]"),
        ("quickstart", "[efficientnet_lite0,clean]"),
    ],
)
def test_the_shipped_protocols_stand_side_by_side(experiment: str, chosen: str) -> None:
    values = ["samples=x.npz"] if experiment == "evaluate_samples" else []
    given = [f"experiment={experiment}", f"protocol={chosen}", *values, "paths.store=/nonexistent/store"]
    made = build(given, [], lambda key, value, mark: f"{key}={value}")
    measuring = [n.request for n in made.nodes.values() if n.request.stage in ("evaluate", "eval_tokenizer")]
    assert measuring and all("further_extractors.clean" in r.config for r in measuring)
    if "torch_fidelity" in chosen:
        assert measuring[0].config["further_settings"]["torch_fidelity"]["score_order"] == "torch_fidelity"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("[toy,toy]", "protocol: toy is named twice"),
        ("[toy,toyfine]", "protocol: there is no protocol 'toyfine'; did you mean toy_fine?"),
        ("[toy,../x]", "protocol: '../x' is not a name"),
    ],
)
def test_a_wrong_list_is_answered_in_one_line(chosen: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        graph(f"protocol={chosen}")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"metrics": ["frechet"]}, "protocol: other names no extractor"),
        ({"extractor": {"name": "coarse"}, "metrics": ["fid"]}, "evaluate.further_settings.other.metrics"),
        ({"extractor": {"name": "coarse"}, "evaluate": {"num_splitz": 3}}, "evaluate.num_splitz: unknown key"),
    ],
)
def test_a_protocol_file_that_says_nonsense_is_named(file: dict[str, Any], said: str) -> None:
    _, (config,) = plan_configs(["experiment=evaluate_samples", "samples=x.npz"])
    with pytest.raises(ConfigError) as caught:
        with_further_protocols({**config, "further_protocols": ["other"], "plugins": ["toylab"]}, lambda name: file)
    assert said in str(caught.value)
