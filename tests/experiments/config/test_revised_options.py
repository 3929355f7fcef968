"""An option whose values mean something else since a revision: only those values get new fingerprints."""

from pathlib import Path
from typing import Any

from experiments.planning.pipeline import build


def sampled(store: Path, *overrides: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    graph = build(["experiment=quickstart", *overrides, f"paths.store={store}"], digest=lambda *_: "0" * 64)
    fingerprint, node = next((f, n) for f, n in graph.nodes.items() if n.name == "sample")
    return fingerprint, dict(node.request.config), dict(node.request.identity)


def test_limits_of_the_confidence_sampler_were_revised_but_not_their_absence(tmp_path: Path) -> None:
    plain, _, identity = sampled(tmp_path)
    assert identity["sampler"]["top_k"] is None
    limited, config, identity = sampled(tmp_path, "sampler.top_k=5")
    assert config["sampler"]["top_k"] == 5 and identity["sampler"]["top_k"] == "5 (revision 2)"
    assert limited != plain == sampled(tmp_path, "sampler.top_k=null")[0]
