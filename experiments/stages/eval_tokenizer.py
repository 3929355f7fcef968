"""How well a tokenizer reconstructs real images: PSNR, SSIM, LPIPS, use of its codebook, distances of features.

B batch, C channels, H, W height and width, h, w token grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from experiments.attempt import Attempt
from experiments.components import load_tokenizer
from experiments.feature_pass import FeaturePass, Scores, blocks_of, finish
from experiments.schema import DatasetSpec, ExtractorSpec, Input, TokenizerSpec
from experiments.set_scores import MetricName, Reference, Settings, add_scores
from maskgit_core.blocks import Blocks
from maskgit_core.features import gather, moments_of, outputs_of
from maskgit_core.hints import Kind, Range, Weights
from maskgit_core.metrics.lpips import Metric as Lpips
from maskgit_core.metrics.pair import per_image
from maskgit_core.pixels import picture_grid, stack, to_signed, to_uint8, to_unit
from maskgit_core.transforms import to_pil

VERSION = 1
PRODUCES = "tokenizer_scores"


def run(
    attempt: Attempt,
    *,
    tokenizer: Annotated[Input | TokenizerSpec, Kind("tokenizer")],
    dataset: DatasetSpec,
    reference: Annotated[Input | None, Kind("reference")] = None,
    extractor: ExtractorSpec | None = None,
    split: str = "test",
    num_images: Annotated[int | None, Range(2, None)] = None,
    metrics: tuple[MetricName, ...] = ("frechet",),
    lpips: Literal["none", "alex", "vgg"] = "none",
    lpips_backbone: Weights[str | None] = None,
    num_shown: Annotated[int, Range(0, 64)] = 10,
    protocol: str = "unnamed",
) -> None:
    """Writes `files/scores.json` and `files/reconstructions.png`.

    Args:
        tokenizer: made upstream, or published.
        dataset: its `split` is reconstructed: images the tokenizer was not trained on.
        reference: statistics of real images to compare with; None: the reconstructions' own originals (rFID).
        extractor: feature network of the set metrics; None: none are taken.
        num_images: the first so many of the split; None: all.
        metrics: of the reconstructions, to the reference where there is one and to their originals.
        lpips, lpips_backbone: whether LPIPS is taken, with which backbone (a file; None: the registry's).
        num_shown: pictures in the grid (original, reconstruction, difference), one a class in turn.
        protocol: name of the protocol, stored with every number.
    """
    images = dataset.with_options(split=split).build()
    images.check()
    count = min(num_images or len(images), len(images))
    meter = Meter(
        attempt,
        load_tokenizer(tokenizer, attempt.device),
        None if extractor is None else FeaturePass(attempt, extractor),
        Settings(tuple(metrics)),
        None if lpips == "none" else Lpips(net=lpips, backbone=lpips_backbone, device=attempt.device),
    )
    meter.check(reference)
    blocks = blocks_of(attempt, "pairs", count, tokenizer if isinstance(tokenizer, Input) else None)
    with attempt.progress(count, unit="image", label="reconstructions") as progress:
        for done in blocks.compute(lambda items: meter.measure(stack(images, items)[0])):
            progress.update(done)
    finish(attempt, blocks)
    if not attempt.is_main:
        return
    scores = Scores(protocol, _protocol(images, dataset.name, split, count, meter, reference))
    _pair_scores(scores, blocks, meter.network.codebook_size, count, meter.lpips is not None)
    _set_scores(scores, blocks, meter, reference)
    scores.write(attempt.files / "scores.json")
    attempt.log({_key(r): r["value"] for r in scores.rows if math.isfinite(r["value"])}, step=count)
    attempt.headline("psnr", scores.value("psnr", "reconstructions") or 0.0, protocol=scores.protocol)
    if num_shown:
        _show(attempt, meter.network, images, num_shown)
    blocks.remove()


def _key(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["of"] == "reconstructions" else f"{row['name']}/{row['of'].replace(' ', '_')}"


@torch.inference_mode()
def reconstruct(network: Any, images_BCHW: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Tokens (B, h, w) and reconstructions (floats in [0, 1], BCHW, on the device) of uint8 images."""
    tokens_Bhw = network.encode(to_signed(images_BCHW.to(device)))
    return tokens_Bhw, to_unit(network.decode(tokens_Bhw))


@dataclass
class Meter:
    """The networks a reconstruction goes through, and what is measured of it."""

    attempt: Attempt
    network: Any
    features: FeaturePass | None
    settings: Settings
    lpips: Lpips | None

    def check(self, reference: Input | None) -> None:
        """Refuses metrics that the extractor cannot serve and a reference made with another one."""
        if self.features is not None:
            self.settings.check(self.features.network)
            if reference is not None:
                self.features.check_reference(reference)

    @torch.inference_mode()
    def measure(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """All that one block contributes: per-image values, tokens, what the extractor gives of both images."""
        parts: list[dict[str, Tensor]] = []
        for part in images_BCHW.split(32):
            tokens_Bhw, unit_BCHW = reconstruct(self.network, part, self.attempt.device)
            original = (part.to(unit_BCHW.device).float() / 255).expand_as(unit_BCHW)
            found = per_image(original, unit_BCHW)
            if self.lpips is not None:
                found["lpips"] = self.lpips.per_image(original, unit_BCHW)
            found["tokens"] = tokens_Bhw.flatten(1).to(torch.int32)
            if self.features is not None:
                network, wanted = self.features.network, self.settings.outputs
                for name, pixels in (("original", part), ("reconstruction", to_uint8(unit_BCHW).cpu())):
                    given = outputs_of(network, pixels, self.attempt.device, wanted)
                    found |= {f"{name}.{key}": value for key, value in given.items()}
            parts.append(found)
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _pair_scores(scores: Scores, blocks: Blocks, codebook_size: int, count: int, with_lpips: bool) -> None:
    """Means over images of PSNR and SSIM; share of the codebook in use and its perplexity."""
    sums: dict[str, float] = {}
    names = ["psnr", "ssim", "tokens", *(["lpips"] if with_lpips else [])]
    used_K = torch.zeros(codebook_size, dtype=torch.int64)
    for tensors in blocks.read(*names):
        for name in [n for n in names if n != "tokens"]:
            sums[name] = sums.get(name, 0.0) + float(tensors[name].double().sum())
        used_K += torch.bincount(tensors["tokens"].flatten().long(), minlength=codebook_size)
    for name, total in sums.items():
        scores.add(name, "reconstructions", total / count, count)
    scores.add("codebook_usage", "reconstructions", float((used_K > 0).double().mean()), count)
    share_K = used_K.double() / used_K.sum()
    entropy = -torch.special.xlogy(share_K, share_K).sum()
    scores.add("codebook_perplexity", "reconstructions", float(entropy.exp()), count)


def _set_scores(scores: Scores, blocks: Blocks, meter: Meter, reference: Input | None) -> None:
    """Distribution metrics of the reconstructions: to the reference where there is one, and to their own originals."""
    if meter.features is None:
        return
    attempt, settings, name = meter.attempt, meter.settings, meter.features.network.distance_name
    original, decoded = blocks.part("original"), blocks.part("reconstruction")
    scratch = attempt.parts / "originals.npy"
    own = Reference(
        moments_of(original),
        moments_of(original, "spatial") if "spatial" in settings.outputs else None,
        gather(original, scratch) if settings.keeps_features else None,
    )
    subject = "reconstructions" if reference is None else "reconstructions to their originals"
    only = None if reference is None else ("frechet", "spatial_frechet")
    add_scores(scores, subject, decoded, own, settings, name, attempt.parts, attempt.device, only)
    scratch.unlink(missing_ok=True)
    if reference is not None:
        target = Reference.load(reference, settings)
        add_scores(scores, "reconstructions", decoded, target, settings, name, attempt.parts, attempt.device)
        add_scores(scores, "real images", original, target, settings, name, attempt.parts, only=("frechet",))


def _protocol(images: Any, name: str, split: str, count: int, meter: Meter, reference: Input | None) -> dict[str, Any]:
    return {
        "images": {
            "dataset": name,
            "split": split,
            "num_images": count,
            "order": "first of the split",
            "image_size": images.image_size,
            "crop": getattr(images, "crop", "none"),
        },
        "reference": "the same images" if reference is None else dict(reference.facts["reference"]),
        "pairs": "per image on floats in [0, 1], not rounded; scikit-image's PSNR and SSIM (uniform 7 x 7), mean",
        "lpips": None if meter.lpips is None else meter.lpips.about,
        "rounding": "half_up (x * 255 + 0.5) before features",
        "extractor": None if meter.features is None else meter.features.about,
        "metrics": None if meter.features is None else meter.settings.about(),
    }


def _show(attempt: Attempt, network: Any, images: Any, num_shown: int) -> None:
    """`reconstructions.png`: a row of originals, one of reconstructions, one of differences (grey = equal)."""
    picked, _ = stack(images, one_of_each_class(images, num_shown))
    _, unit_BCHW = reconstruct(network, picked, attempt.device)
    decoded = to_uint8(unit_BCHW).cpu()
    original = picked.expand_as(decoded)
    difference = ((decoded.int() - original.int()) // 2 + 128).clamp(0, 255).to(torch.uint8)
    scale = max(1, 64 // images.image_size)
    grid = picture_grid([list(original), list(decoded), list(difference)], scale=scale)
    path = attempt.files / "reconstructions.png"
    attempt.publish(path, lambda temporary: to_pil(grid).save(temporary, format="PNG"))
    attempt.show(path)


def one_of_each_class(images: Any, count: int) -> Sequence[int]:
    """Indices of the first image of each class in turn, then of the second; without classes the first images."""
    labels = getattr(images, "labels", None)
    if labels is None or images.num_classes is None:
        return range(min(count, len(images)))
    seen: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(labels):
        turn = seen[int(label)] = seen.get(int(label), 0) + 1
        ranked.append((turn, int(label), index))
    return [index for _, _, index in sorted(ranked)[:count]]
