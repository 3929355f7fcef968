"""What cannot work is refused when it is planned: before a tokenizer, a cache or a training is made for it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image

from experiments.config.schema.params import MISSING
from experiments.planning import preflight
from experiments.planning.graph import Graph
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError, MaskgitError

EXPERIMENT = """\
# @package _global_
# A folder of pictures from its tokenizer to samples.
defaults: [{/dataset: image_folder}, {/tokenizer: vq}, {/model: prenorm}, {/sampler: confidence}, _self_]
description: pictures to samples
dataset: {image_size: 32}
tokenizer: {downsample_factor: 16}
sampler: {num_steps: 4, guidance_scale: 1.0}
pipeline:
  steps:
    train_tokenizer: {stage: train_tokenizer}
    cache_tokens: {stage: cache_tokens, needs: [train_tokenizer]}
    train: {stage: train, needs: [cache_tokens]}
    sample: {stage: sample, needs: [train, train_tokenizer]}
train: {num_train_steps: 10}
train_tokenizer: {num_train_steps: 10}
"""


def planned(tmp_path: Path, *arguments: str) -> Graph:
    (tmp_path / "mine" / "experiment").mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / "experiment" / "pictures.yaml").write_text(EXPERIMENT)
    return build([*arguments, f"paths.store={tmp_path / 'store'}"], [tmp_path / "mine"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "sample.classes=[3,10]",
            "sample.classes: 10 is out of range; the model knows classes 0 to 9, give",
        ),
        ("sample.classes=[-1]", "sample.classes: -1 is out of range"),
        ("sample.classes=[]", "sample.classes: an empty list; name classes from 0 to 9, or null for all"),
        ("sampler.num_steps=50", "sampler.num_steps: 50 steps for 49 tokens; every step reveals at least one token"),
        ("sampler.num_steps=range(48,52)", "sampler.num_steps: 50 steps for 49 tokens"),
        (
            "resources.train.ranks=3",
            "train.batch_size: 32 samples cannot be shared evenly by 3 .* give 30 or 33",
        ),
        (
            "train.fsdp=true train.optimizer=adamw train.held_out_share=0.1",
            "train.fsdp: true, but train.held_out_share has one process",
        ),
        ("train.batch_size=1 resources.train.ranks=2", "train.batch_size: 1 samples cannot .* 2 processes; give 2"),
        ("train_tokenizer.accumulate=3", r"train_tokenizer.batch_size: found 16; .* set it to a multiple of 3"),
        ("tokenizer.quantizer=fsq", r"tokenizer.fsq_levels: found \[\] with codebook_size 256"),
        ("train_tokenizer.crop_size=30", r"train_tokenizer.crop_size: found 30; it is at most dataset.image_size"),
        ("model.num_heads=5", r"model.num_heads: 5 does not divide model.dim \(128\); give a divisor of it"),
    ],
)
def test_the_quickstart_refuses_before_any_work(tmp_path: Path, asked: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, "experiment=quickstart", *asked.split())
    assert not list(tmp_path.glob("store/*/*/request.json"))


def test_what_just_works_is_planned(tmp_path: Path) -> None:
    fitting = ["sample.classes=[0,9]", "sampler.num_steps=49", "train.batch_size=33", "resources.train.ranks=3"]
    assert planned(tmp_path, "experiment=quickstart", *fitting).nodes
    # the inline launcher runs one process whatever ranks are asked for
    assert planned(tmp_path, "experiment=quickstart", "launcher=inline", "resources.train.ranks=3").nodes


def folder(tmp_path: Path, num_classes: int) -> Path:
    for name in [f"class{c}" for c in range(num_classes)] or ["."]:
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for file in ("a.png", "b.png"):
            Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / name / file)
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("num_classes", "asked", "said"),
    [
        (0, ["sampler.guidance_scale=2.0"], "sampler.guidance_scale: 2.0 with an unconditional model"),
        (0, ["sample.classes=[0]"], "sample.classes: the model is unconditional; leave it at null"),
        (3, ["sample.classes=[3]"], "sample.classes: 3 is out of range; the model knows classes 0 to 2"),
        (3, ["sampler.num_steps=5"], "sampler.num_steps: 5 steps for 4 tokens"),
        (3, ["sampler.guidance_scale=2.0", "sample.classes=[2]", "sampler.num_steps=4"], None),
        (0, ["sampler.num_steps=4"], None),
    ],
)
def test_classes_are_counted_in_the_folder(
    tmp_path: Path, num_classes: int, asked: list[str], said: str | None
) -> None:
    arguments = ["experiment=pictures", f"dataset.root={folder(tmp_path, num_classes)}", *asked]
    if said is None:
        assert planned(tmp_path, *arguments).nodes
        return
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, *arguments)


def test_the_classes_of_a_tokenizers_pictures_are_not_those_of_the_model(tmp_path: Path) -> None:
    root = folder(tmp_path, 3)
    few = [f"train_tokenizer.dataset.root={root / 'class0'}", f"dataset.root={root}"]
    graph = planned(tmp_path, "experiment=pictures", *few, "sampler.guidance_scale=2.0", "sample.classes=[2]")
    (train,) = (p for p, node in graph.nodes.items() if node.request.stage == "train")
    known = preflight.KnownFacts(graph.nodes)
    assert [known.fact(train, name) for name in ("num_classes", "num_tokens", "codebook_size")] == [3, 4, 256]


def test_published_weights_say_what_they_are() -> None:
    from maskgit_core.weights.registry import registry

    facts: dict[str, Any] = {name: dict(entry.facts) for name, entry in registry().items() if entry.facts}
    assert set(facts) == {name for name, entry in registry().items() if entry.component.startswith("tokenizers/")}
    assert facts["llamagen/vq_ds8_c2i"] == {"codebook_size": 16384, "downsample_factor": 8}


def test_a_fact_that_cannot_be_known_refuses_nothing(tmp_path: Path) -> None:
    graph = planned(tmp_path, "experiment=quickstart")
    (evaluate,) = (p for p, node in graph.nodes.items() if node.request.stage == "evaluate")
    assert preflight.KnownFacts(graph.nodes).fact(evaluate, "downsample_side") is MISSING
    with pytest.raises(MaskgitError, match=r"dataset.root: \S+nowhere: there is no such"):
        planned(tmp_path, "experiment=pictures", f"dataset.root={tmp_path / 'nowhere'}")


def test_what_only_a_removed_step_would_read_is_no_mistake(tmp_path: Path) -> None:
    scoring = ("evaluate", "eval_tokenizer", "reference_statistics", "report")
    without = ["experiment=quickstart", "protocol=adm", *(f"pipeline.steps.{step}=null" for step in scoring)]
    assert len(planned(tmp_path, *without).nodes) == 5
    with pytest.raises(ConfigError, match="metricz: unknown key"):
        planned(tmp_path, *without, "metricz=[]")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("edit.region=outpaint", "edit.left: outpaint with no columns to add; set edit.left or edit.right"),
        ("edit.region=mask", "edit.mask: region is `mask` but no picture is given"),
        ("edit.right=2", "edit.right: columns to add but region is `bottom`"),
        ("edit.label=10", "edit.label: 10 is out of range; the model knows classes 0 to 9"),
        ("sampler.num_steps=50", "sampler.num_steps: 50 steps for 49 tokens"),
        (
            "evaluate.metrics=[frechet,precision_recall]",
            "evaluate.metrics: precision_recall needs a reference made for it, and reference_statistics.metrics is",
        ),
        (
            "evaluate.extractor.input_size=128",
            "evaluate.extractor: input_size differ\\(s\\) from reference_statistics.extractor",
        ),
    ],
)
def test_edits_that_cannot_work_are_refused(tmp_path: Path, asked: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(tmp_path, "experiment=edit", asked)


@pytest.mark.parametrize("constant", ["SPLITS = 4", "CODEBOOK_SIZE = 3", "NUM_TOKENS = 1"])
def test_constants_of_a_dataset_are_no_facts_of_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    """A component tells the facts of its kind alone; by these four splits, twice the steps would be allowed."""
    package = f"facts_{constant[:5].strip().lower()}"
    (tmp_path / package / "datasets").mkdir(parents=True)
    source = (ROOT / "maskgit_core" / "datasets" / "fashion_mnist.py").read_text()
    (tmp_path / package / "datasets" / "mine.py").write_text(source + f"\n{constant}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = ["experiment=quickstart", "dataset.name=mine", f"plugins=[{package}]"]
    planned(tmp_path, *mine, "sample.sampler.num_steps=49")
    with pytest.raises(ConfigError, match="num_steps: 50 steps for 49 tokens"):
        planned(tmp_path, *mine, "sample.sampler.num_steps=50")
