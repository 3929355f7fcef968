"""How well a tokenizer reconstructs real images: PSNR, SSIM, use of its codebook, and Fréchet distances.

B batch, C channels, H, W height and width, h, w token grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from experiments.attempt import Attempt
from experiments.components import load_tokenizer
from experiments.feature_pass import FeaturePass, Scores, blocks_of, finish
from experiments.schema import DatasetSpec, ExtractorSpec, Input, TokenizerSpec
from maskgit_core.features import features_of, moments_of
from maskgit_core.hints import Kind, Range
from maskgit_core.metrics.frechet import frechet_distance
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
    num_shown: Annotated[int, Range(0, 64)] = 10,
    protocol: str = "unnamed",
) -> None:
    """Writes `files/scores.json` and `files/reconstructions.png`.

    Args:
        tokenizer: made upstream, or published.
        dataset: its `split` is reconstructed: images the tokenizer was not trained on.
        reference: statistics of real images; adds the distances of originals and reconstructions to them.
        extractor: feature network of the Fréchet distances; None: none are taken.
        num_images: the first so many of the split; None: all.
        num_shown: pictures in the grid (original, reconstruction, difference), one a class in turn.
        protocol: name of the protocol, stored with every number.
    """
    images = dataset.with_options(split=split).build()
    images.check()
    count = min(num_images or len(images), len(images))
    network = load_tokenizer(tokenizer, attempt.device)
    features = None if extractor is None else FeaturePass(attempt, extractor)
    moments = features.check_reference(reference) if features is not None and reference is not None else None
    blocks = blocks_of(attempt, "pairs", count, tokenizer if isinstance(tokenizer, Input) else None)
    with attempt.progress(count, unit="image", label="reconstructions") as progress:
        for done in blocks.compute(lambda items: _measure(attempt, network, stack(images, items)[0], features)):
            progress.update(done)
    finish(attempt, blocks)
    if not attempt.is_main:
        return
    about = _protocol(images, dataset.name, split, count, features)
    scores = Scores(protocol, about)
    _pair_scores(scores, blocks, network.codebook_size, count)
    if features is not None:
        originals, reconstructions = moments_of(blocks, "original"), moments_of(blocks, "reconstruction")
        name = features.network.distance_name
        scores.add(name, "reconstructions to their originals", frechet_distance(reconstructions, originals), count)
        if moments is not None and reference is not None:
            known = dict(reference.facts["reference"])
            scores.add(name, "reconstructions", frechet_distance(reconstructions, moments), count, reference=known)
            scores.add(name, "real images", frechet_distance(originals, moments), count, reference=known)
    scores.write(attempt.files / "scores.json")
    attempt.log({_key(r): r["value"] for r in scores.rows if math.isfinite(r["value"])}, step=count)
    attempt.headline("psnr", scores.value("psnr", "reconstructions") or 0.0, protocol=about)
    if num_shown:
        _show(attempt, network, images, num_shown)
    blocks.remove()


def _key(row: dict[str, Any]) -> str:
    return str(row["name"]) if row["of"] == "reconstructions" else f"{row['name']}/{row['of'].replace(' ', '_')}"


@torch.inference_mode()
def reconstruct(network: Any, images_BCHW: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Tokens (B, h, w) and reconstructions (floats in [0, 1], BCHW, on the device) of uint8 images."""
    tokens_Bhw = network.encode(to_signed(images_BCHW.to(device)))
    return tokens_Bhw, to_unit(network.decode(tokens_Bhw))


@torch.inference_mode()
def _measure(attempt: Attempt, network: Any, images_BCHW: Tensor, features: FeaturePass | None) -> dict[str, Tensor]:
    """All that one block contributes: per-image values, tokens, features of originals and reconstructions."""
    tokens, values, originals, reconstructions = [], [], [], []
    for part in images_BCHW.split(32):
        tokens_Bhw, unit_BCHW = reconstruct(network, part, attempt.device)
        original = (part.to(unit_BCHW.device).float() / 255).expand_as(unit_BCHW)
        values.append(per_image(original, unit_BCHW))
        tokens.append(tokens_Bhw.flatten(1).to(torch.int32).cpu())
        if features is not None:
            originals.append(features_of(features.network, part, attempt.device))
            reconstructions.append(features_of(features.network, to_uint8(unit_BCHW), attempt.device))
    found = {name: torch.cat([v[name] for v in values]) for name in values[0]}
    found["tokens"] = torch.cat(tokens)
    if features is not None:
        found |= {"original": torch.cat(originals), "reconstruction": torch.cat(reconstructions)}
    return found


def _pair_scores(scores: Scores, blocks: Any, codebook_size: int, count: int) -> None:
    """Means over images of PSNR and SSIM; share of the codebook in use and its perplexity."""
    sums = {"psnr": 0.0, "ssim": 0.0}
    used_K = torch.zeros(codebook_size, dtype=torch.int64)
    for tensors in blocks.read():
        for name in sums:
            sums[name] += float(tensors[name].double().sum())
        used_K += torch.bincount(tensors["tokens"].flatten().long(), minlength=codebook_size)
    for name, total in sums.items():
        scores.add(name, "reconstructions", total / count, count)
    scores.add("codebook_usage", "reconstructions", float((used_K > 0).double().mean()), count)
    share_K = used_K.double() / used_K.sum()
    entropy = -torch.special.xlogy(share_K, share_K).sum()
    scores.add("codebook_perplexity", "reconstructions", float(entropy.exp()), count)


def _protocol(images: Any, name: str, split: str, count: int, features: FeaturePass | None) -> dict[str, Any]:
    return {
        "images": {
            "dataset": name,
            "split": split,
            "num_images": count,
            "order": "first of the split",
            "image_size": images.image_size,
            "crop": getattr(images, "crop", "none"),
        },
        "pairs": "per image on floats in [0, 1], not rounded; scikit-image's PSNR and SSIM (uniform 7 x 7), mean",
        "rounding": "half_up (x * 255 + 0.5) before features",
        "extractor": None if features is None else features.about,
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
