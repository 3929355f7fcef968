"""Fingerprints of every shipped experiment: a list that changes on purpose only.

A changed fingerprint means that everybody's finished work is done again. Whoever changes one on purpose (a default, a
recipe, an experiment) renews the list with `python tests/experiments/planning/test_golden_fingerprints.py` in the same
commit and says which experiments changed and why.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from experiments.config.compose import group_names
from experiments.planning.pipeline import build
from experiments.store.content_digests import ContentDigests
from maskgit_core.errors import MaskgitError

GOLDENS = Path(__file__).with_name("goldens") / "fingerprints.json"


def fingerprints(experiment: str) -> dict[str, str]:
    """Step name -> fingerprint, with every dataset and every weight file taken as the same bytes."""
    request = [f"experiment={experiment}", "paths.store=/nonexistent/store"]
    with patch.object(ContentDigests, "__call__", lambda self, key, value, mark: "0" * 64):
        try:
            graph = build([*request, "dataset.root=/nonexistent/data"])
        except MaskgitError:  # its dataset has no root
            graph = build(request)
    return {node.name: fingerprint for fingerprint, node in graph.nodes.items()}


#: Their steps follow from the pictures of the folder they are given.
FITTED = ("own_images",)
LISTED = [name for name in group_names("experiment") if name not in FITTED]


@pytest.mark.parametrize("experiment", LISTED)
def test_fingerprints_are_what_they_were(experiment: str) -> None:
    golden = json.loads(GOLDENS.read_text())
    assert experiment in golden, f"a new experiment: run python {Path(__file__).name} to add it"
    assert fingerprints(experiment) == golden[experiment]


if __name__ == "__main__":
    table = {name: dict(sorted(fingerprints(name).items())) for name in LISTED}
    GOLDENS.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
