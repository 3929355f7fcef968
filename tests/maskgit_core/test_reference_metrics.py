"""Resizes and distribution metrics against figures from the references' own code (`goldens/metrics.json`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from weight_recipe import raw_uniform

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.evaluation.reference_files import holds_statistics, read_statistics
from maskgit_core.extractors import inception_fid, vgg16
from maskgit_core.layers.network_input import resize_for_network
from maskgit_core.metrics import frechet, inception_score, neighbours

FIGURES = json.loads((Path(__file__).parent / "goldens/metrics.json").read_text())
PLACES = [(0, 0, 0), (0, 1, 7), (1, 150, 149), (2, 298, 298), (1, 17, 211), (0, 239, 33)]


def image(height: int, width: int, seed: int) -> Tensor:
    """uint8 (3, H, W) noise of which a third is black or white."""
    values = torch.from_numpy(raw_uniform("image", 3 * height * width, seed)).view(3, height, width)
    return ((values * 1.6).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def features(count: int, width: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(raw_uniform("features", count * width, seed)).view(count, width) * scale


def moments(features_ND: Tensor) -> frechet.Moments:
    metric = frechet.Metric()
    metric.update(features_ND)
    return metric.moments


def distance(entry: dict[str, Any]) -> float:
    first, second = entry["seeds"]
    other = features(entry["count"], entry["width"], second, 1.3) + 0.1
    return frechet.frechet_distance(moments(features(entry["count"], entry["width"], first)), moments(other))


def score(logits_NK: Tensor, num_splits: int, split_size: int | None = None) -> float:
    count = len(logits_NK)
    if split_size is not None:
        num_splits = inception_score.splits_of_size(count, split_size)
    metric = inception_score.Metric(num_splits=num_splits)
    metric.update(logits_NK, inception_score.assign_splits(count, num_splits, "file", split_size=split_size))
    return metric.compute()["inception_score"]


@pytest.mark.parametrize("entry", FIGURES["resize"], ids=lambda e: f"{e['how']}-{e['size']}")
def test_clean_resizes_equal_clean_fids_and_haltons(entry: dict[str, Any]) -> None:
    found = resize_for_network(image(*entry["size"], entry["seed"])[None], 299, entry["how"])[0]
    assert float(found.min()) >= 0 and float(found.max()) <= 255
    assert [float(found[place]) for place in PLACES] == pytest.approx(entry["values"], abs=1e-4)
    assert float(found.double().sum()) == pytest.approx(entry["sum"], rel=1e-7)
    assert int(((found == 0) | (found == 255)).sum()) == entry["at_limits"]


@pytest.mark.parametrize("entry", FIGURES["halton"], ids=lambda e: str(e["count"]))
def test_haltons_fid_and_inception_score(entry: dict[str, Any]) -> None:
    assert distance(entry) == pytest.approx(entry["fid"], rel=1e-6)
    logits = features(entry["count"], 30, entry["seeds"][0] + 10, 6.0)
    assert score(logits, 10) == pytest.approx(entry["inception_score"], rel=1e-6)


@pytest.mark.parametrize("entry", FIGURES["maskbit"], ids=lambda e: str(e["count"]))
def test_maskbits_fid_and_inception_score_of_the_whole_set(entry: dict[str, Any]) -> None:
    assert distance(entry) == pytest.approx(entry["fid"], rel=1e-9)
    logits = features(entry["count"], 30, entry["seeds"][0] + 10, 6.0)
    assert score(logits, 1) == pytest.approx(entry["inception_score"], rel=1e-9)


@pytest.mark.parametrize("entry", FIGURES["adm"], ids=lambda e: f"{e['count']}-{'fid' if 'fid' in e else 'is'}")
def test_adms_fid_and_inception_score_over_splits_of_one_size(entry: dict[str, Any]) -> None:
    if "fid" in entry:
        assert distance(entry) == pytest.approx(entry["fid"], rel=1e-9)
    else:
        found = score(features(entry["count"], 30, entry["seed"], 6.0), 1, entry["split_size"])
        assert found == pytest.approx(entry["inception_score"], rel=2e-6)


def test_splits_of_one_size_leave_the_rest_to_the_last() -> None:
    for order in ("file", "torch_fidelity", "content"):
        hashes = torch.arange(12003).flip(0)
        splits = inception_score.assign_splits(12003, 3, order, hashes, split_size=5000)  # type: ignore[arg-type]
        assert splits.bincount().tolist() == [5000, 5000, 2003]


def test_vgg16_layout_is_the_published_one() -> None:
    with torch.device("meta"):
        state = vgg16.Network().state_dict()
    assert len(state) == 30 and sum(t.numel() for t in state.values()) == 138_357_544 - 4_097_000  # but the last layer


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in torchvision's layout, with the last layer that this project leaves out."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    rest = {"classifier.6.weight": torch.zeros(1000, 4096), "classifier.6.bias": torch.zeros(1000)}
    torch.save(vgg16.random_state(3) | rest, path)
    return path


@pytest.mark.slow
def test_vgg16_features_precision_and_recall_equal_torch_fidelitys(vgg_file: Path) -> None:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16
    from torch_fidelity.metric_prc import prc_features_to_metric

    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(vgg_file))
    ours = vgg16.Extractor(weights=str(vgg_file))
    assert ours.distance_name == "fd_unpublished_vgg16"
    sets = [torch.stack([image(20, 28, seed) for seed in range(first, first + 6)]) for first in (0, 50)]
    expected = [theirs(images)[0] for images in sets]
    found = [ours(images) for images in sets]
    for one, other in zip(found, expected, strict=True):
        assert one.shape == (6, 4096) and torch.allclose(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    metric = neighbours.Metric(num_neighbours=3, density_neighbours=3)
    metric.update(found[0], found[1])
    told = prc_features_to_metric(expected[0], expected[1], verbose=False)
    for name in ("precision", "recall"):
        assert metric.compute()[name] == pytest.approx(told[name], rel=1e-6)


def test_vgg16_refuses_another_networks_file(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.weight has another shape"):
        vgg16.Extractor(weights=str(tmp_path / "other.pth"))


@pytest.mark.slow  # torch-fidelity draws its weights for a minute before it reads the file
def test_inception_in_float64_equals_torch_fidelitys(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(inception_fid.random_state(3), tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
    ).double()
    theirs.feature_extractor_internal_dtype = torch.float64  # 0.4.0 stays in float32 whatever it is told
    ours = inception_fid.Extractor(weights=str(tmp_path / "inception.pth"), precision="float64")
    assert ours.preprocessing["precision"] == "float64"
    pooled, logits = theirs(image(40, 56, 1)[None])
    found = ours.all_outputs(image(40, 56, 1)[None])
    assert found["features"].dtype == torch.float32
    assert torch.allclose(found["features"], pooled, rtol=1e-6, atol=1e-6)
    assert torch.allclose(found["logits"], logits, rtol=1e-5, atol=1e-5)


def test_statistics_of_tensors_are_read_and_nothing_else_is(tmp_path: Path) -> None:
    given = moments(features(50, 6, 1))
    path = tmp_path / "ImageNet_256_train_stats.pt"
    torch.save({"mu": given.mean.float(), "cov": given.covariance.float()}, path)
    assert holds_statistics(path)
    read, spatial = read_statistics(path, 6)
    assert spatial is None and np.allclose(read.covariance, given.covariance, atol=1e-6)
    for wrong in ({"mu": given.mean}, [given.mean], {"mu": given.mean, "cov": given.covariance[:2]}):
        torch.save(wrong, path)
        with pytest.raises(DataError, match="ImageNet_256_train_stats"):
            read_statistics(path, 6)
    torch.save({"mu": given.mean, "cov": print}, path)  # would run code when unpickled
    with pytest.raises(DataError, match="cannot be read as statistics"):
        read_statistics(path, 6)
