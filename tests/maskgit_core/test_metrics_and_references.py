"""Metrics equal their reference implementations, on the same images with the same (random) network weights."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.extractors import efficientnet_lite0, inception_fid
from maskgit_core.layers.network_input import resize_for_network
from maskgit_core.metrics import frechet, inception_score, kernel, lpips, neighbours, pair

ROOT = Path(__file__).resolve().parents[2]
EXTRACTORS = sorted(p.stem for p in (ROOT / "maskgit_core" / "extractors").glob("[a-z]*.py"))
METRICS = sorted(p.stem for p in (ROOT / "maskgit_core" / "metrics").glob("[a-z]*.py"))


def normal(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    draws = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws * scale + shift


def moments(features: Tensor, batch: int = 37) -> frechet.Moments:
    metric = frechet.Metric()
    for part in features.split(batch):
        metric.update(part)
    return metric.moments


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_file_is_a_component(name: str) -> None:
    cls = importlib.import_module(f"maskgit_core.metrics.{name}").Metric
    assert all(callable(getattr(cls, member)) for member in ("update", "merge", "compute"))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_file_is_a_component(name: str) -> None:
    cls = importlib.import_module(f"maskgit_core.extractors.{name}").Extractor
    assert issubclass(cls, torch.nn.Module) and isinstance(cls.feature_dim, int)
    assert isinstance(cls.preprocessing, property)


# -- Fréchet distance -----------------------------------------------------------------------------------------------
def test_streamed_moments_equal_numpys_far_from_zero() -> None:
    features = normal(501, 24, 0, scale=1e-3, shift=1e4)
    found = moments(features)
    assert found.num_samples == 501
    np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-6, atol=1e-13)


def test_merged_moments_equal_streamed_ones() -> None:
    features = normal(200, 8, 1)
    parts = [frechet.Metric() for _ in range(3)]
    for part, rows in zip(parts, features.split((90, 60, 50)), strict=True):
        part.update(rows)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    np.testing.assert_allclose(parts[0].moments.covariance, moments(features).covariance, rtol=1e-12)


def pytorch_fid_formula(a: Tensor, b: Tensor) -> float:
    """The distance as pytorch-fid computes it: a general matrix root of the product of the covariances."""
    from scipy import linalg

    x, y = a.numpy(), b.numpy()
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    traces = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False)) - 2 * np.trace(root)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + traces)


def test_frechet_distance_equals_pytorch_fids_formula() -> None:
    a, b = normal(400, 96, 2), normal(300, 96, 3, scale=1.3, shift=0.2) @ normal(96, 96, 4, scale=0.1)
    assert frechet.frechet_distance(moments(a), moments(b)) == pytest.approx(pytorch_fid_formula(a, b), rel=1e-9)


@pytest.mark.parametrize(("ranks", "seed"), [((5, 40), 5), ((40, 5), 6), ((5, 7), 7), ((1, 40), 8)])
def test_frechet_distance_is_exact_for_singular_covariances(ranks: tuple[int, int], seed: int) -> None:
    # With a rotation Q and diagonal covariances the distance has a closed form.
    rotation, _ = torch.linalg.qr(normal(40, 40, seed))
    variances = [torch.cat([torch.rand(r, dtype=torch.float64) + 0.5, torch.zeros(40 - r).double()]) for r in ranks]
    a, b = (
        frechet.Moments(torch.zeros(40).double() + i, rotation @ torch.diag(v) @ rotation.T, 0)
        for i, v in enumerate(variances)
    )
    expected = 40 + float((variances[0].sqrt() - variances[1].sqrt()).square().sum())
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def features(kind: str, size: int = 192) -> tuple[Any, Any]:
    """Two sets: Gaussian features, non-negative ones with a falling spectrum, or fewer samples than features."""
    draws = torch.Generator().manual_seed(5)

    def normal(count: int) -> Any:
        return torch.randn(count, size, generator=draws, dtype=torch.float64)

    if kind == "gaussian":
        sets = normal(4 * size), 1.1 * normal(4 * size)
    elif kind == "falling":
        mixing = (normal(size) * torch.arange(1, size + 1, dtype=torch.float64).reciprocal().pow(1.5)).T
        sets = (normal(4 * size) @ mixing).clamp_min(0), (normal(4 * size) @ mixing * 1.05 + 0.02).clamp_min(0)
    else:
        sets = normal(size // 3), normal(size // 4)
    return sets


@pytest.mark.parametrize("kind", ["gaussian", "falling", "deficient"])
def test_frechet_root_is_the_nuclear_norm_and_ordinary_features_take_the_fast_way(kind, monkeypatch) -> None:
    a, b = features(kind)
    roots = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]  # X' X is the covariance
    nuclear = float(torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    if kind != "deficient":
        monkeypatch.setattr(torch.linalg, "svdvals", lambda *a: pytest.fail("the slow way"))
    assert float(frechet._trace_root(cov_a, cov_b)) == pytest.approx(nuclear, rel=1e-9)


def test_frechet_root_of_a_spectrum_that_misleads_the_fast_way() -> None:
    """Variances that rise along the axes: eigenvalues below the noise are all wrong, and the determinant tells."""
    spread = torch.arange(192, 0, -1, dtype=torch.float64).pow(-5.0)
    expected = float((spread * spread.flip(0)).sqrt().sum())
    assert float(frechet._trace_root(spread.diag(), spread.flip(0).diag())) == pytest.approx(expected, rel=1e-9)
    expected = float(spread.sum())
    assert float(frechet._trace_root(spread.diag(), spread.diag())) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_laws() -> None:
    a, b = moments(normal(60, 16, 9)), moments(normal(60, 16, 10, scale=2.0))
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet.frechet_distance(a, b) == pytest.approx(frechet.frechet_distance(b, a), rel=1e-10)
    shifted = a._replace(mean=a.mean + 3)
    assert frechet.frechet_distance(a, shifted) == pytest.approx(9 * 16, rel=1e-10)


def test_features_that_make_no_sense_are_refused() -> None:
    metric = frechet.Metric()
    metric.update(torch.ones(1, 4))
    with pytest.raises(DataError, match="at least 2 samples"):
        _ = metric.moments
    for wrong in (torch.full((2, 4), float("nan")), torch.ones(2, 5), torch.ones(4), torch.ones(0, 4)):
        with pytest.raises(DataError):
            metric.update(wrong)
    with pytest.raises(DataError, match="one extractor"):
        frechet.frechet_distance(moments(normal(5, 3, 0)), moments(normal(5, 4, 0)))


# -- pairs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("shape", "channels"), [((32, 48), 3), ((28, 28), 1), ((7, 9), 3)])
def test_psnr_and_ssim_equal_scikit_images(shape: tuple[int, int], channels: int) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    draws = torch.Generator().manual_seed(0)
    a = torch.rand(3, channels, *shape, generator=draws)
    b = (a + 0.2 * torch.randn(a.shape, generator=draws)).clamp(0, 1)
    metric = pair.Metric()
    found = metric.update(a, b)
    psnr, ssim = [], []
    for x, y in zip(a.double(), b.double(), strict=True):
        left, right = x.permute(1, 2, 0).numpy(), y.permute(1, 2, 0).numpy()
        psnr.append(peak_signal_noise_ratio(left, right, data_range=1))
        ssim.append(structural_similarity(left, right, data_range=1.0, channel_axis=-1))
    np.testing.assert_allclose(found["psnr"], psnr, rtol=1e-12)
    np.testing.assert_allclose(found["ssim"], ssim, rtol=1e-10)
    assert metric.compute()["psnr"] == pytest.approx(np.mean(psnr), rel=1e-12)


def test_variants_of_psnr_and_ssim_equal_torchmetrics() -> None:
    from torchmetrics import image as theirs

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 1, 180, 176, generator=generator)
    b = (a + 0.2 * torch.rand(a.shape, generator=generator) * torch.linspace(0.1, 1, 3).view(3, 1, 1, 1)).clamp(0, 1)
    references: dict[Any, Any] = {
        "psnr": theirs.PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
        "psnr_pooled": theirs.PeakSignalNoiseRatio(data_range=1.0),
        "ssim_gaussian": theirs.StructuralSimilarityIndexMeasure(data_range=1.0),
        "ssim_uniform": theirs.StructuralSimilarityIndexMeasure(data_range=1.0, gaussian_kernel=False, kernel_size=7),
        "ms_ssim": theirs.MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0),
    }
    ours, halves = pair.Metric(names=tuple(references)), [pair.Metric(names=tuple(references)) for _ in range(2)]
    for metric, (one, other) in zip(halves, zip(a.split(2), b.split(2), strict=True), strict=True):
        metric.update(one, other)
        for reference in references.values():
            reference.update(other.double(), one.double())
    halves[0].merge(halves[1])
    ours.update(a, b)
    for name, reference in references.items():
        assert ours.compute()[name] == pytest.approx(float(reference.compute()), rel=1e-6), name
        assert halves[0].compute()[name] == pytest.approx(ours.compute()[name], rel=1e-12), name
        assert name in pair.CONVENTIONS
    assert ours.compute()["psnr_pooled"] < ours.compute()["psnr"], "pooling is lower where images differ"
    assert set(pair.CONVENTIONS) == set(pair._VARIANTS) == set(pair.PairName.__args__)


def test_llamagens_ssim_is_scikit_images_with_another_range() -> None:
    from skimage.metrics import structural_similarity

    a, b = torch.rand(2, 2, 3, 24, 20, generator=torch.Generator().manual_seed(1)).double()
    found = pair.per_image(a, b, names=("ssim_range_2",))["ssim_range_2"]
    for x, y, value in zip(a, b, found, strict=True):
        theirs = structural_similarity(x.numpy(), y.numpy(), data_range=2.0, channel_axis=0)
        assert float(value) == pytest.approx(theirs, rel=1e-6)
    with pytest.raises(DataError, match="ms_ssim: images of"):
        pair.per_image(a, b, names=("ms_ssim",))


def test_pairs_that_make_no_sense_are_refused() -> None:
    image = torch.rand(1, 3, 8, 8)
    for a, b in ((image, image[..., :7]), (image.byte(), image.byte()), (image[..., :5], image[..., :5])):
        with pytest.raises(DataError):
            pair.per_image(a, b)


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_lpips_equals_the_lpips_package(net: Any, tmp_path: Path) -> None:
    import lpips as reference

    torch.manual_seed(0)
    backbone = lpips.Network(net).features
    torch.save(backbone.state_dict(prefix="features."), tmp_path / "backbone.pth")
    theirs = reference.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    for mine, source in zip(theirs.net.parameters(), backbone.parameters(), strict=True):
        mine.data.copy_(source.data)
    draws = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 64, 64, generator=draws)
    b = (a + 0.3 * torch.rand(a.shape, generator=draws)).clamp(0, 1)
    with torch.no_grad():
        expected = theirs(a, b, normalize=True).flatten()
    metric = lpips.Metric(net=net, backbone=str(tmp_path / "backbone.pth"))
    np.testing.assert_allclose(metric.update(a, b), expected, rtol=1e-6)
    assert metric.compute()["lpips"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert float(metric.per_image(a, a).abs().max()) == 0


def test_lpips_refuses_another_networks_file(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"features\.0\.weight"):
        lpips.Metric(net="alex", backbone=str(tmp_path / "other.pth"))


# -- distributions ----------------------------------------------------------------------------------------------------
def test_inception_score_equals_torch_fidelitys() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = normal(203, 30, 11, scale=2.0).float()
    splits = inception_score.assign_splits(len(logits), 10, "torch_fidelity")
    metrics = [inception_score.Metric(num_splits=10) for _ in range(2)]
    for index, rows in enumerate(torch.arange(203).split(50)):
        metrics[index % 2].update(logits[rows], splits[rows])
    metrics[0].merge(metrics[1])
    expected = isc_features_to_metric(logits)
    found = metrics[0].compute()
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    assert found["inception_score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-8)


def test_inception_score_by_content_does_not_depend_on_order() -> None:
    images = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    logits = normal(40, 5, 12)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = []
    for order in (torch.arange(40), shuffled, shuffled.flip(0)):
        hashes = inception_score.pixel_hashes(images[order])
        metric = inception_score.Metric(num_splits=4)
        metric.update(logits[order], inception_score.assign_splits(40, 4, "content", hashes))
        found.append(metric.compute())
    for other in found[1:]:
        assert other["inception_score"] == pytest.approx(found[0]["inception_score"], rel=1e-12)
        assert other["inception_score_std"] == pytest.approx(found[0]["inception_score_std"], rel=1e-9)


def test_inception_score_of_sure_and_balanced_predictions_is_the_number_of_classes() -> None:
    metric = inception_score.Metric(num_splits=1)
    metric.update(torch.eye(7).repeat(3, 1) * 200)
    assert metric.compute()["inception_score"] == pytest.approx(7, rel=1e-12)


def test_kernel_distance_equals_torch_fidelitys() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = normal(130, 32, 13).float(), normal(150, 32, 14, scale=1.2).float()
    expected = kid_features_to_metric(a.double(), b.double(), kid_subsets=8, kid_subset_size=60, verbose=False)
    metric = kernel.Metric(num_subsets=8, subset_size=60)
    metric.update(a, b)
    found = metric.compute()
    assert found["kernel_distance"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert found["kernel_distance_std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)


@pytest.mark.parametrize("block", [33, 4096])
def test_precision_and_recall_equal_torch_fidelitys(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr(neighbours, "BLOCK", block)
    a, b = normal(140, 5, 15).float(), normal(110, 5, 16, scale=1.4, shift=0.3).float()
    metric = neighbours.Metric()
    metric.update(a, b)
    found, expected = metric.compute(), prc_features_to_metric(a, b, verbose=False)
    assert found["precision"] == pytest.approx(expected["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], rel=1e-6)
    # Density and coverage straight from their definitions (Naeem et al. 2020, eq. 3 and 4).
    radii = torch.cdist(b, b).kthvalue(6, dim=1).values
    inside = torch.cdist(a, b) < radii
    assert found["density"] == pytest.approx(float(inside.sum()) / (5 * len(a)), rel=1e-6)
    assert found["coverage"] == pytest.approx(float(inside.any(0).double().mean()), rel=1e-6)


def test_a_collapsed_set_is_precise_but_recalls_nothing() -> None:
    real = normal(80, 4, 17)
    collapsed = real[:1] + 1e-4 * normal(50, 4, 18)
    metric = neighbours.Metric()
    metric.update(collapsed, real)
    found = metric.compute()
    assert found["precision"] == 1.0 and found["recall"] <= 0.05 and found["coverage"] < 0.2


# -- networks ---------------------------------------------------------------------------------------------------------
def pattern(side: int) -> Tensor:
    index = torch.arange(3 * side * side).view(1, 3, side, side)
    return ((index * index // 7 + index * 13) % 256).to(torch.uint8)


@pytest.mark.parametrize(
    ("side", "total", "first"),
    # From the package efficientnet_lite_pytorch 0.1.0 with the same weights file and pixels.
    [(64, 223.0197601, (0.231512, 0.0, 2.292868, 0.0)), (224, 190.7241516, (0.009088, 0.0, 0.40661, 0.078496))],
)
def test_efficientnet_lite0_equals_the_reference_package(side: int, total: float, first: tuple[float, ...]) -> None:
    features = efficientnet_lite0.Extractor(input_size=side)(pattern(side))
    assert features.shape == (1, 1280) and features.dtype == torch.float32
    assert float(features.sum()) == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(features[0, :4], first, atol=2e-5)


def test_efficientnet_lite0_is_known_to_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path))
    named = efficientnet_lite0.Extractor(input_size=32, weights="efficientnet/lite0")
    assert named.weights_sha256.startswith(efficientnet_lite0.WEIGHTS_SHA256)
    with pytest.raises(WeightsError, match="did you mean efficientnet/lite0"):
        efficientnet_lite0.Extractor(weights="efficientnet/lite1")


def test_efficientnet_lite0_takes_grey_and_refuses_other_weights(tmp_path: Path) -> None:
    extractor = efficientnet_lite0.Extractor(input_size=32)
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    (tmp_path / "other.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="is not that of the published file"):
        efficientnet_lite0.Extractor(weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (300, 310)])
def test_tf1_resize_equals_torch_fidelitys(height: int, width: int) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, height, width), generator=draws, dtype=torch.uint8)
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert float((resize_for_network(images, 299, "tf1") - expected).abs().max()) < 1e-4


def test_the_three_resizes_differ() -> None:
    images = torch.randint(0, 256, (1, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    three = [resize_for_network(images, 29, how) for how in ("tf1", "torch", "clean")]
    assert all(x.shape == (1, 3, 29, 29) for x in three)
    assert all(float((x - y).abs().mean()) > 1 for x, y in itertools.combinations(three, 2))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the exact published layout."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_fid.random_state(3), path)
    return path


def test_inception_layout_is_the_published_one() -> None:
    state = inception_fid.random_state(0)
    assert len(state) == 566 and sum(t.numel() for t in state.values()) == 23_885_486


# torch-fidelity's own root of a 2,048 x 2,048 product takes a minute; its formula is also held on 96 features below.
def test_spatial_features_are_adms() -> None:
    """`mixed_6/conv` (the 1 x 1 branch of the third 17 x 17 block, after its ReLU), 7 channels, row by row."""
    network = inception_fid.Network().eval()
    network.load_state_dict(inception_fid.random_state(3))
    seen: dict[str, Tensor] = {}
    network.Mixed_6c.register_forward_hook(lambda _, given, out: seen.update(before=out))
    network.Mixed_6d.register_forward_hook(lambda _, given, out: seen.update(block=out))
    with torch.inference_mode():
        spatial = network(torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1)["spatial"]
    branch = network.Mixed_6d.get_submodule("branch1x1")
    with torch.inference_mode():
        made = torch.relu(branch.bn(branch.conv(seen["before"])))  # type: ignore[operator]
    assert made.shape == (1, 192, 17, 17) and torch.equal(seen["block"][:, :192], made), "the branch comes first"
    assert spatial.shape == (1, 2023) and float(spatial.min()) == 0 < float(spatial.max())
    for row, column, channel in ((0, 0, 0), (0, 0, 6), (0, 1, 0), (3, 16, 2), (16, 16, 6)):
        assert spatial[0, (row * 17 + column) * 7 + channel] == made[0, channel, row, column]


@pytest.mark.parametrize("with_fid", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_numbers_equal_torch_fidelitys_from_the_same_weights(inception_file: Path, with_fid: bool) -> None:
    from torch_fidelity import calculate_metrics

    class Images(torch.utils.data.Dataset[Tensor]):
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    draws = torch.Generator().manual_seed(5)
    fake = torch.randint(0, 256, (10, 3, 24, 24), generator=draws, dtype=torch.uint8)
    real = torch.randint(0, 200, (10, 3, 24, 24), generator=draws, dtype=torch.uint8)
    expected = calculate_metrics(
        input1=Images(fake), input2=Images(real), fid=with_fid, isc=True, kid=True, prc=True, cuda=False, verbose=False,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file), kid_subsets=5, kid_subset_size=8, batch_size=10,
        isc_splits=2, samples_find_deep=False, cache=False, save_cpu_ram=True,
    )  # fmt: skip
    extractor = inception_fid.Extractor(weights=str(inception_file))
    assert extractor.distance_name == "fd_unpublished_inception", "only the published file gives numbers called FID"
    given = [extractor.all_outputs(images) for images in (fake, real)]
    assert [given[0][k].shape[1] for k in ("features", "spatial", "logits")] == [2048, 2023, 1008]
    a, b = (g["features"] for g in given)

    if with_fid:
        fid = frechet.frechet_distance(moments(a), moments(b))
        assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    score = inception_score.Metric(num_splits=2)
    score.update(given[0]["logits"], inception_score.assign_splits(10, 2, "torch_fidelity"))
    assert score.compute()["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    kid = kernel.Metric(num_subsets=5, subset_size=8)
    kid.update(a, b)
    assert kid.compute()["kernel_distance"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    near = neighbours.Metric()
    near.update(a, b)
    assert near.compute()["precision"] == pytest.approx(expected["precision"], rel=1e-6)
    assert near.compute()["recall"] == pytest.approx(expected["recall"], rel=1e-6)


def test_frechet_distance_equals_torch_fidelitys() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = normal(300, 96, 20), normal(250, 96, 21, scale=1.2, shift=0.1)
    expected = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False)
    found = frechet.frechet_distance(moments(a), moments(b))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-9)


@pytest.mark.parametrize("damage", ["html", "key", "shape", "extra", "pickle"])
def test_wrong_inception_files_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path, state = tmp_path / "inception.pth", {"fc.bias": torch.zeros(1008)}
    if damage == "html":
        path.write_bytes(b"<!doctype html><title>404</title>")
    elif damage == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    else:
        if damage != "key":
            state = inception_fid.Network().state_dict()
            state["fc.bias" if damage == "shape" else "fc.more"] = torch.zeros(3)
        torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        inception_fid.Extractor(weights=str(path))
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_inception_needs_weights_or_a_seed() -> None:
    with pytest.raises(WeightsError, match="name weights, or set random_seed"):
        inception_fid.Extractor(weights=None)
    assert inception_fid.Extractor(weights=None, random_seed=1).distance_name == "fd_random_inception"
