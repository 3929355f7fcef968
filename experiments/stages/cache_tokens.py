"""Encodes a dataset once: every image's tokens, in shards that training reads at memory speed.

Any number of processes work on it side by side; killed at any moment, it goes on with the shards that are missing. The
shards are plain WebDataset tars (`maskgit_core/shards/format.py`), described by a manifest of their own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.config.specs import DatasetSpec, Input, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.running.components import load_tokenizer
from experiments.store.documents import Request
from experiments.store.typed_json import Block
from maskgit_core.files import link_or_copy, read_json
from maskgit_core.hints import Execution, Kind, Range
from maskgit_core.images.encoding import Encoder, state_digest
from maskgit_core.images.views import Views
from maskgit_core.shards.maker import CacheMaker, Clock, Settings, finished_indexes
from maskgit_core.shards.writer import write_manifest

VERSION = 1
PRODUCES = "tokens"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    tokenizer: Annotated[Input | TokenizerSpec, Kind("tokenizer")],
    dataset: DatasetSpec,
    variants: Literal["original", "flip", "ten_crop", "random_resized_crop"] = "flip",
    crop_size: Annotated[int | None, Range(8, 4096)] = None,
    num_crops: Annotated[int, Range(1, 1000)] = 10,
    crop_scale: tuple[float, float] = (0.8, 1.0),
    precision: Literal["fp32", "tf32", "bf16"] = "fp32",
    latents: bool = False,
    shard_size: Annotated[int, Range(1, 1_000_000)] = 4096,
    seed: int = 0,
    batch_size: Execution[Annotated[int, Range(1, 65536)]] = 64,
    num_workers: Execution[Annotated[int, Range(0, 256)]] = 4,
) -> None:
    """Writes the cache.

    Args:
        tokenizer: made upstream, or published.
        dataset: what to encode; its crop and resize are part of the cache's identity.
        variants: views of each image that are kept: itself, with its mirror image, ten crops, or random crops with
            their boxes.
        crop_size, num_crops, crop_scale: of the crops (side; how many random ones; share of the area they cover).
        precision: of the encoder; lower ones flip near-ties, so it is recorded.
        latents: also keep the encoder's continuous output as float16.
        shard_size: samples per shard; what is lost at most when a process is killed.
        seed: of the random crops.
        batch_size: images encoded at once; num_workers: threads that decode pictures.
    """
    images = dataset.build()
    network = load_tokenizer(tokenizer, attempt.device)
    views = Views(variants, crop_size, num_crops, (crop_scale[0], crop_scale[1]), seed=seed)
    settings = Settings(views, precision, shard_size, batch_size, latents, num_workers)
    about = _about(attempt, network, tokenizer, images, dataset, settings)
    # A rebuilt tokenizer must not find its predecessor's shards, so the folder of pieces is named by it.
    pieces = attempt.parts / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    progress = attempt.progress(len(images), unit="image", label="caching tokens")
    speaker = _Speaker(attempt, progress)
    maker = CacheMaker(
        images,
        Encoder(network, attempt.device, precision),
        pieces,
        settings,
        rank=attempt.rank,
        world_size=attempt.world_size,
        wait=attempt.share is None,
        stop=lambda: attempt.should_stop,
        report=speaker,
    )
    done = maker.run()
    progress.close()
    speaker.sum_up(maker.clock)
    if not done:
        attempt.stop()
    if attempt.is_main:
        _finalise(attempt, pieces, maker.num_shards, about)


class _Speaker:
    """Shows and logs how fast it goes and what it waits for."""

    EVERY_S = 2.0

    def __init__(self, attempt: Attempt, progress: Any) -> None:
        self.attempt, self.progress = attempt, progress
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, clock: Clock) -> None:
        if self.progress.done == 0 and done > clock.images:
            self.progress.start_at(done - clock.images)
        self.progress.update(done - self.progress.done)
        now = time.monotonic()
        if now - self._last >= self.EVERY_S:
            self._last = now
            self.attempt.log(self._figures(clock, now - self._started), step=done)

    def _figures(self, clock: Clock, seconds: float) -> dict[str, float]:
        waits = {
            f"{name.removesuffix('_s')}_share": getattr(clock, name) / seconds
            for name in ("decoding_wait_s", "encoding_s", "writing_wait_s", "others_wait_s")
        }
        return {"images_per_s": clock.images / seconds, **waits}

    def sum_up(self, clock: Clock) -> None:
        """One line in the log of this process."""
        print(
            f"rank {self.attempt.rank}: {clock.images} images in {clock.total_s:.1f} s "
            f"({clock.images / max(clock.total_s, 1e-9):.1f} a second); waited {clock.decoding_wait_s:.1f} s for "
            f"pictures, {clock.writing_wait_s:.1f} s for the disk, {clock.others_wait_s:.1f} s for other processes",
            file=sys.stderr,
            flush=True,
        )


def _about(
    attempt: Attempt, network: Any, tokenizer: Any, images: Any, dataset: DatasetSpec, settings: Settings
) -> dict[str, object]:
    """The origin of the tokens for the manifest: no paths, nothing about how it ran."""
    request = Request.read(attempt.folder)
    digests = request.outside if request else {}
    outside = {key: value for key, value in digests.items() if key.startswith("dataset.")}
    options = {key: value for key, value in dataset.options.items() if f"dataset.{key}" not in outside}
    family = (
        tokenizer.to_dict()
        if isinstance(tokenizer, TokenizerSpec)
        else (read_json(tokenizer.files / "tokenizer.json") or {})
    )
    views = settings.views
    return {
        "num_classes": images.num_classes,
        "class_names": list(getattr(images, "class_names", [])),
        "variants": views.names,
        "dataset": {"name": dataset.name, "options": options, "content": outside, "num_samples": len(images)},
        "tokenizer": {"name": family.get("name"), "weights_sha256": state_digest(network)},
        "encoding": {
            "precision": settings.precision,
            "device": attempt.device.split(":")[0],
            "views": views.kind,
            "crop_size": views.crop_size,
            "crop_scale": list(views.scale) if views.has_boxes else None,
            "seed": views.seed if views.kind == "random_resized_crop" else None,
            "shard_size": settings.shard_size,
            "latents": settings.latents,
        },
    }


def _finalise(attempt: Attempt, pieces: Path, num_shards: int, about: Block) -> None:
    """Links the finished shards into the outputs and writes their manifest."""
    layout, indexes = finished_indexes(pieces, num_shards)
    for index in indexes:
        link_or_copy(pieces / index["name"], attempt.files / index["name"])
    manifest = write_manifest(attempt.files, layout, indexes, **about)
    attempt.fact(
        codebook_size=layout.codebook_size,
        grid=list(layout.grid),
        num_classes=about["num_classes"],
        class_names=about["class_names"],
        num_samples=manifest["num_samples"],
        num_variants=layout.num_variants,
    )
    digest = hashlib.sha256("".join(index["sha256"] for index in indexes).encode()).hexdigest()
    attempt.dataset(about["dataset"]["name"], digest[:16], str(attempt.files), "tokens")
