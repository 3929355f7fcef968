"""A component that got a new name: its former name is accepted everywhere, and work made under it is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from experiments.config.specs import ModelSpec
from experiments.launching.prepare import write_launch, write_request
from experiments.planning.graph import Graph
from experiments.planning.pipeline import build
from experiments.planning.plan import Planner
from experiments.running.binding import stage_arguments
from experiments.store.documents import Manifest, Notes, Request
from experiments.store.step_folder import Store
from maskgit_core.models import RENAMED, first_name, present_module
from maskgit_core.trained import load_model

SMALL = ["model.dim=32", "model.num_layers=1", "model.num_heads=2"]


def graph(store: Path, *arguments: str) -> Graph:
    request = ["experiment=quickstart", f"paths.store={store}", *arguments]
    return build(request, digest=lambda key, value, mark: "0" * 64)


def test_both_names_make_the_same_steps(store: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("name: official\n")
    present, former = (graph(store, f"model={name}", *SMALL) for name in ("maskgit", "official"))
    request = ["experiment=quickstart", f"paths.store={store}", "model=mine", *SMALL]
    mine = build(request, [tmp_path / "conf"], digest=lambda key, value, mark: "0" * 64)
    assert list(present.nodes) == list(former.nodes) == list(mine.nodes)
    for made in (present, former, mine):
        (train,) = made.by_step()["train"]
        assert train.request.config["model"]["name"] == "maskgit" and train.label.startswith("maskgit")


def test_options_under_one_name_go_over_those_under_the_other(store: Path) -> None:
    made = graph(store, "model=maskgit", "train.model={name:official,dim:48,num_heads:2}")
    (train,) = made.by_step()["train"]
    model = train.request.config["model"]
    assert (model["dim"], model["num_layers"]) == (48, 3)


def test_a_step_finished_under_the_former_name_is_done(store: Path) -> None:
    made, digests = graph(store, "model=maskgit", *SMALL), {}
    for node in made.nodes.values():
        folder = node.folder.with_name(node.folder.name.replace("maskgit", "official"))
        config = {k: {**v, "name": "official"} if k == "model" else v for k, v in node.request.config.items()}
        modules = {k: v.replace(".models.maskgit", ".models.official") for k, v in node.request.modules.items()}
        old = replace(node, folder=folder, request=replace(node.request, config=config, modules=modules))
        write_request(old, replace(made, nodes={**made.nodes, node.fingerprint: old}), Store(store))
        write_launch(old, made, "20260101-000000-aaaaaaaa")
        files = folder / "attempts" / "0001" / "files"
        files.mkdir(parents=True)
        Manifest.of_files(Request.needed(folder), 1, files, Notes(), {p: digests[p] for p in node.upstream}).create(
            folder
        )
        digests[node.fingerprint] = Manifest.needed(folder).digest
    for name in ("maskgit", "official"):
        planned = {s.node.request.name: s for s in Planner(graph(store, f"model={name}", *SMALL)).plan()}
        assert {step.action for step in planned.values()} == {"done"}
        assert planned["train"].node.folder.name.startswith("official-")
    arguments = stage_arguments(planned["train"].node.folder)
    assert arguments["model"].build(codebook_size=8, num_tokens=6, num_classes=4).num_classes == 4


@pytest.mark.parametrize("module", ["", "maskgit_core.models.official"])
def test_a_model_kept_under_the_former_name_loads(tmp_path: Path, module: str) -> None:
    facts = {"codebook_size": 8, "num_tokens": 6, "num_classes": 4}
    model = ModelSpec("official", {"dim": 32, "num_layers": 1, "num_heads": 2}, module).build(**facts)
    described = {"name": "official", "module": module, "options": {"dim": 32, "num_layers": 1, "num_heads": 2}}
    (tmp_path / "model.json").write_text(json.dumps({**described, "facts": facts}))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    tokens, labels = torch.zeros(1, 6, dtype=torch.long), torch.tensor([2])
    assert torch.equal(load_model(tmp_path)(tokens, labels), model.eval()(tokens, labels))


def test_every_former_name_has_a_config_and_no_file_of_its_own() -> None:
    for old, new in RENAMED.items():
        assert (ROOT / "conf" / "model" / f"{old}.yaml").read_text().endswith(f"defaults: [{new}]\n")
        assert not (ROOT / "maskgit_core" / "models" / f"{old}.py").exists()
        assert present_module(f"maskgit_core.models.{old}") == f"maskgit_core.models.{new}"
        assert first_name(f"maskgit_core.models.{new}", new) == old
