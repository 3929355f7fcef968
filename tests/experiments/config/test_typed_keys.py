"""What is typed from Hydra's habit, and keys that would change nothing: each is answered in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import LAB

from experiments.commands import parse_arguments
from experiments.config.points import plan_configs
from experiments.planning.pipeline import build
from maskgit_core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("composed_once")


def graph(*overrides: str, experiment: str = "quickstart", dirs: tuple[Path, ...] = ()) -> Any:
    request = [f"experiment={experiment}", "paths.store=/nonexistent/store", *overrides]
    return build(request, dirs, lambda key, value, mark: "0" * 64)


def refused(*overrides: str, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        graph(*overrides, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1e-4", "lr: changes no step of this pipeline (another key decides, or none takes it); write "),
        ("lr=1e-4,1e-3", "train_tokenizer.lr or train.lr"),
        ("num_train_steps=5", "train.num_train_steps"),
        (
            "batch_size=4",
            "batch_size: would change other steps alone, since train_tokenizer and train set it in their own",
        ),
        ("batch_size=4,8", "write STEP.batch_size: train_tokenizer.batch_size or "),
        ("train.num_train_steps=" + "9" * 4300, "99999... (4300 digits) is out of range; numbers have at most 64 bits"),
        ("train.lr=1" + "0" * 400, "(401 digits) is out of range"),
        ("train.seed=9223372036854775808", "train.seed: 9223372036854775808 is out of range"),
        ("name=tiny", "name: changes no step"),
        ("resources.edit.ranks=2", "resources.edit.ranks: changes no step"),
        ("edit.region=left", "edit.region: changes no step"),
        ("hydra.run.dir=x", "hydra.run.dir: Hydra's own settings have no effect here"),
        ("train.lr=shuffle(1,2)", "write train.lr=a,b without shuffle"),
        ("train.seed=range(0,1000000000)", "is more than 10,000 values, the limit of a sweep"),
        ("train.seed=range(0,1,0)", "is more than 10,000 values"),
        ("train.lr=glob(*)", "matches no file of a config group"),
        ("paths.store=a,b", "paths.store: cannot be swept"),
        ("tracking.ship=true,false", "tracking.ship: cannot be swept"),
        ("description='\x1b[31m'", "description: found"),
        ("+launcher.partition='a\n#SBATCH --x'", "launcher.partition: found 'a\\n#SBATCH --x'; it must be one line"),
        ("paths.data='a\nb'", "paths.data: found 'a\\nb'; it must be one line"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(override: str, said: str) -> None:
    assert said in refused(override)


def test_one_experiment_at_a_time() -> None:
    with pytest.raises(ConfigError, match="experiment=a,b: one experiment at a time"):
        build(["experiment=a,b"])


def test_a_key_at_its_default_or_in_force_is_accepted() -> None:
    plain = graph()
    assert list(graph("train.label_drop=0.1").nodes) == list(plain.nodes)
    assert list(graph("train.log_every=3", "resources.train.ranks=2").nodes) == list(plain.nodes)
    assert list(graph("cache_tokens.batch_size=4").nodes) == list(plain.nodes)  # how it runs, not what it makes


def test_a_step_without_its_users_leaves_no_unknown_key() -> None:
    steps = ("evaluate", "reference_statistics", "eval_tokenizer", "report")
    left = graph(*(f"~pipeline.steps.{step}" for step in steps))
    assert "train" in {node.name for node in left.nodes.values()} and len(left.nodes) == 5


def test_one_value_of_a_key_that_the_experiment_sweeps_takes_the_place_of_its_values() -> None:
    """It was ignored: the sweep's own values won."""
    points, configs = plan_configs(["experiment=quickstart_guidance", "sampler.guidance_scale=2"])
    assert [c["sampler"]["guidance_scale"] for c in configs] == [2, 2]
    assert points == [{"sampler.choice_temperature": 2.0}, {"sampler.choice_temperature": 6.0}]
    points, configs = plan_configs(
        ["experiment=quickstart_guidance", "sampler.guidance_scale=2", "sampler.choice_temperature=4"]
    )
    assert points == [{}] and configs[0]["sampler"]["choice_temperature"] == 4


def test_the_store_is_an_option_of_every_command() -> None:
    """`maskgit run NAME --store DIR` was refused, though all other commands take it."""
    assert parse_arguments("run", ["quickstart", "--store", "/a b/it's"]).overrides[-1] == "paths.store='/a b/it\\'s'"
    asked = [*parse_arguments("plan", ["--store", "/a b/it's", "quickstart", "train.lr=0.1"]).overrides]
    _, (config,) = plan_configs(asked)
    assert config["paths"]["store"] == "/a b/it's" and config["train"]["lr"] == 0.1


def test_a_glob_sweeps_over_the_files_of_a_group() -> None:
    points = graph("sampler=glob(halton*)").items
    assert len(points) > 1 and all(str(point.params["sampler"]).startswith("halton") for point in points)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--cfg", "job"], "maskgit config experiment=NAME"),
        (["--info"], "maskgit doctor"),
        (["--config-name", "x"], "experiment=NAME"),
    ],
)
def test_options_of_hydra_are_answered(typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match="is an option of Hydra's") as caught:
        parse_arguments("plan", typed)
    assert said in str(caught.value)
    assert parse_arguments("run", ["-m", "experiment=quickstart"]).overrides == ["experiment=quickstart"]


def test_an_unknown_key_lists_the_nearest() -> None:
    said = refused("trian=5")
    assert "did you mean train?" in said and " more]" in said and len(said) < 200


def test_a_plugin_registers_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "reslab"
    (package / "conf" / "experiment").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "resolvers.py").write_text(
        "from omegaconf import OmegaConf\nOmegaConf.register_new_resolver('double', lambda n: 2 * n, replace=True)\n"
    )
    (package / "conf" / "experiment" / "doubled.yaml").write_text(
        "# @package _global_\nplugins: [toylab, reslab]\npipeline: {steps: {numbers: {stage: numbers}}}\n"
        "numbers: {count: '${double:21}'}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(LAB.parent.parent))
    (node,) = graph(experiment="doubled", dirs=(package / "conf",)).nodes.values()
    assert node.request.config["count"] == 42


def test_images_on_the_fly_go_with_a_published_tokenizer_too() -> None:
    published = {
        n.name: n
        for n in graph("data=images", "dataset.root=/nowhere", experiment="maskgit_imagenet256").nodes.values()
    }
    assert "cache_tokens" not in published and not published["train"].inputs
    assert published["train"].request.config["image_tokenizer"]["name"] == "maskgit_vqgan"
    trained = {n.name: n for n in graph("data=images").nodes.values()}
    assert (
        set(trained["train"].inputs) == {"image_tokenizer"} and "image_tokenizer" not in trained["train"].request.config
    )


def test_the_backbone_of_a_metric_that_is_not_taken_is_not_needed() -> None:
    asked = ("tokenizer_table", "eval_tokenizer.lpips=none")
    (with_lpips, *_), (without, *_) = (
        [n for n in graph(*typed, experiment=asked[0]).nodes.values() if n.request.stage == "eval_tokenizer"]
        for typed in ((), asked[1:])
    )
    assert "lpips_backbone" in with_lpips.request.weights and "lpips_backbone" not in without.request.weights
