"""How well a tokenizer reconstructs real images: PSNR, SSIM, LPIPS, use of its codebook, distances of features.

Keywords of `run`:

    tokenizer: made upstream, or published.
    dataset: its `split` is reconstructed: images the tokenizer was not trained on.
    reference: statistics of real images to compare with; None: the reconstructions' own originals (rFID).
    extractor: feature network of the set metrics; None: none are taken.
    num_images: the first so many of the split; None: all.
    metrics: of the reconstructions, to the reference where there is one and to their originals.
    pairs: metrics of image pairs, by the name of their convention (`maskgit_core/metrics/pair.py`).
    lpips, lpips_backbone: whether LPIPS is taken, with which backbone (a file; None: the registry's).
    save: `png` keeps every reconstruction, as `reconstructions/INDEX.png`.
    num_shown: pictures in the grid (original, reconstruction, difference), one a class in turn.
    protocol: name of the protocol, stored with every number.
    further_extractors, further_settings, further_references: more protocols by name (`stages/evaluate.py`), of the same
        reconstructions; pair metrics belong to the first.

B batch, C channels, H, W height and width, h, w token grid.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from experiments.config.specs import DatasetSpec, ExtractorSpec, Input, TokenizerSpec
from experiments.evaluation.feature_pass import Scores, blocks_of, finish, publish_scores
from experiments.evaluation.measures import Measure, Network, counted, further_measures, networks
from experiments.evaluation.set_scores import MetricName, Reference, Settings, add_scores
from experiments.running.attempt import Attempt
from experiments.running.components import load_tokenizer
from maskgit_core.evaluation.blocks import Blocks
from maskgit_core.evaluation.features import gather, moments_of, outputs_of
from maskgit_core.hints import Kind, Neutral, Range, UnusedIf, Weights
from maskgit_core.images.pixels import picture_grid, stack, to_nhwc, to_signed, to_uint8, to_unit
from maskgit_core.images.transforms import to_pil
from maskgit_core.metrics.lpips import Metric as Lpips
from maskgit_core.metrics.pair import PairName, of_mean, per_image
from maskgit_core.metrics.pair import about as about_pairs

VERSION = 1
PRODUCES = "tokenizer_scores"
PIECEWISE = True


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
    pairs: Annotated[tuple[PairName, ...], Neutral(("psnr", "ssim"))] = ("psnr", "ssim"),
    lpips: Literal["none", "alex", "vgg"] = "none",
    lpips_backbone: Annotated[Weights[str | None], UnusedIf("lpips", "none")] = None,
    save: Annotated[Literal["none", "png"], Neutral("none")] = "none",
    num_shown: Annotated[int, Range(0, 64)] = 10,
    protocol: str = "unnamed",
    further_references: Annotated[Sequence[Input], Kind("reference")] = (),
    further_extractors: dict[str, ExtractorSpec] | None = None,
    further_settings: Annotated[dict[str, dict[str, object]] | None, Neutral(None)] = None,
) -> None:
    """Writes `files/scores.json` and `files/reconstructions.png`; the keywords are explained above."""
    images = dataset.with_options(split=split).build()
    images.check()
    count = counted("eval_tokenizer.num_images", num_images, len(images))
    measures = [] if extractor is None else [Measure(protocol, extractor, Settings(tuple(metrics)), reference)]
    measures += further_measures(further_extractors, further_settings, further_references, needs_reference=False)
    meter = Meter(
        attempt,
        load_tokenizer(tokenizer, attempt.device),
        networks(attempt, measures),
        tuple(dict.fromkeys(pairs)),
        None if lpips == "none" else Lpips(net=lpips, backbone=lpips_backbone, device=attempt.device),
        None if save == "none" else attempt.parts / "reconstructions",
    )
    blocks = blocks_of(attempt, "pairs", count, tokenizer if isinstance(tokenizer, Input) else None)
    with attempt.progress(count, unit="image", label="reconstructions") as progress:
        computed = blocks.compute(lambda given: meter.measure(*given), lambda items: (stack(images, items)[0], items))
        for done in computed:
            progress.update(done)
    finish(attempt, blocks)
    if not attempt.is_main:
        return
    by_protocol = _scores(meter, blocks, protocol, _about_images(images, dataset.name, split, count))
    publish_scores(attempt, by_protocol, "reconstructions", by_protocol[0].rows[0]["name"], count)
    if meter.saved is not None:
        shutil.copytree(meter.saved, attempt.files / "reconstructions", dirs_exist_ok=True)
    if num_shown:
        _show(attempt, meter.network, images, num_shown)
    blocks.remove()


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
    networks: list[Network]
    pairs: tuple[str, ...]
    lpips: Lpips | None
    saved: Path | None  # where reconstructions are kept

    @torch.inference_mode()
    def measure(self, images_BCHW: Tensor, items: Sequence[int]) -> dict[str, Tensor]:
        """All that one block contributes: per-image values, tokens, what the extractor gives of both images."""
        parts: list[dict[str, Tensor]] = []
        for start, part in zip(range(0, len(images_BCHW), 32), images_BCHW.split(32), strict=True):
            tokens_Bhw, unit_BCHW = reconstruct(self.network, part, self.attempt.device)
            if self.saved is not None:
                _write_pngs(self.saved, to_nhwc(to_uint8(unit_BCHW)), items[start : start + 32])
            original = (part.to(unit_BCHW.device).float() / 255).expand_as(unit_BCHW)
            measured = per_image(original, unit_BCHW, names=self.pairs)
            if self.lpips is not None:
                measured["lpips"] = self.lpips.per_image(original, unit_BCHW)
            measured["tokens"] = tokens_Bhw.flatten(1).to(torch.int32)
            for network in self.networks:
                for name, pixels in (("original", part), ("reconstruction", to_uint8(unit_BCHW).cpu())):
                    given = outputs_of(network.features.network, pixels, self.attempt.device, network.outputs)
                    measured |= {f"{network.mark}{name}.{key}": value for key, value in given.items()}
            parts.append(measured)
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _write_pngs(folder: Path, images_NHWC: Any, items: Sequence[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pixels, index in zip(images_NHWC, items, strict=True):
        to_pil(pixels).save(folder / f"{index:06d}.png")


def _scores(meter: Meter, blocks: Blocks, protocol: str, images: dict[str, object]) -> list[Scores]:
    """The numbers of every protocol; those of image pairs first, under the first protocol."""
    measured = [(network, measure) for network in meter.networks for measure in network.measures]
    first = measured[0] if measured and measured[0][1].protocol == protocol else (None, None)
    by_protocol = [Scores(protocol, _protocol(images, meter, *first))]
    _pair_scores(by_protocol[0], blocks, meter, blocks.count)
    for network, measure in measured:
        if measure is not first[1]:
            by_protocol.append(Scores(measure.protocol, _protocol(images, meter, network, measure)))
        _set_scores(by_protocol[-1], blocks, meter.attempt, network, measure)
    return by_protocol


def _pair_scores(scores: Scores, blocks: Blocks, meter: Meter, count: int) -> None:
    """Means over images of the pair metrics; share of the codebook in use and its perplexity."""
    sums: dict[str, float] = {}
    names = [*meter.pairs, "tokens", *(["lpips"] if meter.lpips is not None else [])]
    codebook_size = meter.network.codebook_size
    used_K = torch.zeros(codebook_size, dtype=torch.int64)
    for tensors in blocks.read(*names):
        for name in [n for n in names if n != "tokens"]:
            sums[name] = sums.get(name, 0.0) + float(tensors[name].double().sum())
        used_K += torch.bincount(tensors["tokens"].flatten().long(), minlength=codebook_size)
    for name, total in sums.items():
        scores.add(name, "reconstructions", of_mean(name, total / count), count)
    scores.add("codebook_usage", "reconstructions", float((used_K > 0).double().mean()), count)
    share_K = used_K.double() / used_K.sum()
    entropy = -torch.special.xlogy(share_K, share_K).sum()
    scores.add("codebook_perplexity", "reconstructions", float(entropy.exp()), count)


def _set_scores(scores: Scores, blocks: Blocks, attempt: Attempt, network: Network, measure: Measure) -> None:
    """Distribution metrics of the reconstructions: to the reference where there is one, and to their own originals."""
    settings, name, reference = measure.settings, network.features.network.distance_name, measure.reference
    original, decoded = blocks.part(f"{network.mark}original"), blocks.part(f"{network.mark}reconstruction")
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


def _about_images(images: Any, name: str, split: str, count: int) -> dict[str, object]:
    return {
        "dataset": name,
        "split": split,
        "num_images": count,
        "order": "first of the split",
        "image_size": images.image_size,
        "crop": getattr(images, "crop", "none"),
    }


def _protocol(
    images: dict[str, object], meter: Meter, network: Network | None, measure: Measure | None
) -> dict[str, object]:
    reference = None if measure is None else measure.reference
    return {
        "images": images,
        "reference": "the same images" if reference is None else dict(reference.facts["reference"]),
        "pairs": about_pairs(meter.pairs),
        "lpips": None if meter.lpips is None else meter.lpips.about,
        "rounding": "half_up (x * 255 + 0.5) before features",
        "extractor": None if network is None else network.features.about,
        "metrics": None if measure is None else measure.settings.about(),
    }


def _show(attempt: Attempt, network: object, images: Any, num_shown: int) -> None:
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
