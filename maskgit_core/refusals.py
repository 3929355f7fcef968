"""Requests that cannot work, each refused in one line: asked before a plan and again by who does the work.

Light: numbers in, `ConfigError` out; nothing here imports torch. `num_classes=None` is a model without classes.
"""

import math
from collections.abc import Sequence

from maskgit_core.errors import ConfigError


def check_classes(key: str, classes: Sequence[int] | None, num_classes: int | None) -> None:
    """Raises `ConfigError` where a class to sample is none of the model's; None asks for all there are."""
    if classes is None:
        return
    if num_classes is None:
        raise ConfigError(f"{key}: the model is unconditional; leave it at null")
    if not classes:
        raise ConfigError(f"{key}: an empty list; name classes from 0 to {num_classes - 1}, or null for all")
    wrong = [number for number in classes if not 0 <= number < num_classes]
    if wrong:
        raise ConfigError(
            f"{key}: {wrong[0]} is out of range; the model knows classes 0 to {num_classes - 1}, give one of them"
        )


def check_weights(step: str, has_model: bool, has_tokens: bool, untrained: bool) -> None:
    """Raises `ConfigError` where a step that samples has neither trained weights nor what fresh ones are made for."""
    if not has_model and not untrained:
        raise ConfigError(f"pipeline.steps.{step}.needs: no step that makes a model; add one, such as train")
    if not (has_model or has_tokens):
        raise ConfigError(f"pipeline.steps.{step}.needs: neither a model nor tokens that a fresh one would be made for")


def check_steps(num_steps: int, num_tokens: int, key: str = "sampler.num_steps") -> None:
    """Raises `ConfigError` where there are more reveal steps than tokens to reveal."""
    if num_steps > num_tokens:
        raise ConfigError(
            f"{key}: {num_steps} steps for {num_tokens} tokens; every step reveals at least one token, "
            "so give at most that many"
        )


def check_guidance(scale: float, num_classes: int | None, key: str = "sampler.guidance_scale") -> None:
    """Raises `ConfigError` where guidance is asked of a model without classes."""
    if num_classes is None and scale != 1.0:
        raise ConfigError(
            f"{key}: {scale} with an unconditional model; there is no class to guide towards, set it to 1.0"
        )


def check_critic(is_needed: bool, is_given: bool, key: str = "sampler.name") -> None:
    """Raises `ConfigError` where a sampler asks for a critic and there is none."""
    if is_needed and not is_given:
        raise ConfigError(
            f"{key}: this sampler asks a trained critic which tokens to keep and none is given; let the step need "
            "one of stage train_critic (as experiment=token_critic does), or take a sampler without one"
        )


def check_codebooks(key: str, codebook_size: int, known: int) -> None:
    """Raises `ConfigError` where a tokenizer's codebook is not the one that the model draws from."""
    if codebook_size != known:
        raise ConfigError(
            f"{key}: its codebook has {codebook_size} entries but the model draws from {known}; "
            "use the tokenizer the model was trained with"
        )


def check_goes_on(num_train_steps: int, done: int, key: str = "train.num_train_steps") -> None:
    """Raises `ConfigError` where a training that continues another has no step left to make."""
    if done >= num_train_steps:
        raise ConfigError(f"{key}: {num_train_steps} steps, but it goes on from step {done}; give more")


def check_region(region: str, has_mask: bool, left: int, right: int) -> None:
    """Raises `ConfigError` where a region to edit lacks what it is made of, or has something it never uses."""
    if region == "mask" and not has_mask:
        raise ConfigError("edit.mask: region is `mask` but no picture is given; set edit.mask to its path")
    if region != "mask" and has_mask:
        raise ConfigError(
            f"edit.mask: a picture is given but region is `{region}`; set edit.region=mask or mask to null"
        )
    if region == "outpaint" and left + right == 0:
        raise ConfigError("edit.left: outpaint with no columns to add; set edit.left or edit.right")
    if region != "outpaint" and left + right > 0:
        key = "edit.left" if left else "edit.right"
        raise ConfigError(f"{key}: columns to add but region is `{region}`; set edit.region=outpaint or 0")


def check_batch(batch_size: int, num_processes: int, key: str = "train.batch_size") -> None:
    """Raises `ConfigError` where processes cannot take equal parts of the batch."""
    if batch_size % num_processes:
        below = batch_size - batch_size % num_processes
        near = " or ".join(str(size) for size in (below, below + num_processes) if size)
        raise ConfigError(
            f"{key}: {batch_size} samples cannot be shared evenly by {num_processes} processes; give {near}, "
            f"or another number of processes (resources.train.ranks)"
        )


def check_sharding(fsdp: bool, optimizer: str, precision: str, looks: Sequence[str] = (), step: str = "train") -> None:
    """Raises `ConfigError` where what a training asks for needs whole weights in one process, and they are divided.

    Args:
        looks: keys that have one process look at the whole model on the way.
    """
    if fsdp and optimizer == "muon":
        raise ConfigError(
            f"{step}.fsdp: true with optimizer=muon, which needs whole matrices; take adamw, or fsdp=false"
        )
    if fsdp and precision == "fp16":
        raise ConfigError(f"{step}.fsdp: true with precision=fp16; take bf16 or fp32, or fsdp=false")
    if fsdp and looks:
        raise ConfigError(
            f"{step}.fsdp: true, but {step}.{looks[0]} has one process look at the whole model; set it to 0, "
            "or fsdp=false"
        )


def check_places(key: str, one_dimensional: bool) -> None:
    """Raises `ConfigError` where a region is to be edited by tokens that belong to no place in the picture."""
    if one_dimensional:
        raise ConfigError(
            f"{key}: its tokens are one-dimensional and belong to no region of the picture, so none can be edited; "
            "use a model and a tokenizer with a two-dimensional grid"
        )


def check_quantizer(kind: str, codebook_size: int, normalised: bool, levels: Sequence[int]) -> None:
    """Raises `ConfigError` where a quantizer (`vq`, `lfq`, `fsq`) cannot have the codebook asked of it."""
    if kind == "lfq" and codebook_size & (codebook_size - 1):
        raise ConfigError(
            f"tokenizer.codebook_size: found {codebook_size}; with quantizer=lfq it is a power of 2; "
            f"set it to {1 << (codebook_size.bit_length() - 1)}"
        )
    if kind == "fsq" and (not levels or min(levels) < 2 or math.prod(levels) != codebook_size):
        raise ConfigError(
            f"tokenizer.fsq_levels: found {list(levels)} with codebook_size {codebook_size}; with quantizer=fsq the "
            "product of the levels (each at least 2) is codebook_size; for example [8, 6, 5] and 240"
        )
    if kind != "fsq" and levels:
        raise ConfigError(f"tokenizer.fsq_levels: found {list(levels)} with quantizer={kind}; leave it out, or use fsq")
    if kind != "vq" and normalised:
        raise ConfigError(f"tokenizer.normalised: found true with quantizer={kind}; only vq has codes to normalise")


def check_levels(channels: int, multipliers: Sequence[int], downsample_factor: int) -> None:
    """Raises `ConfigError` for widths that a VQGAN's norms cannot divide, or levels of another downsampling."""
    if channels % 32:
        raise ConfigError(
            f"tokenizer.channels: found {channels}; the network's norms take groups of 32; set it to a multiple of 32"
        )
    if 2 ** (len(multipliers) - 1) != downsample_factor or min(multipliers) < 1:
        raise ConfigError(
            f"tokenizer.multipliers: found {list(multipliers)} with downsample_factor {downsample_factor}; it takes "
            f"{downsample_factor.bit_length()} positive numbers, finest level first; set both, or leave it out"
        )


def check_parts(batch_size: int, num_processes: int, accumulate: int, key: str = "train_tokenizer") -> None:
    """Raises `ConfigError` where the parts of a batch that processes take one after the other are not of one size."""
    parts = num_processes * accumulate
    if batch_size % parts:
        raise ConfigError(
            f"{key}.batch_size: found {batch_size}; it is divided over {num_processes} processes and "
            f"accumulate={accumulate}; set it to a multiple of {parts}"
        )


def check_crop(crop_size: int | None, image_size: int, downsample_factor: int, key: str = "train_tokenizer") -> None:
    """Raises `ConfigError` where a tokenizer cannot be trained on squares of that size cut from the images."""
    if crop_size is not None and (crop_size > image_size or crop_size % downsample_factor):
        raise ConfigError(
            f"{key}.crop_size: found {crop_size}; it is at most dataset.image_size ({image_size}) and a multiple of "
            f"{downsample_factor}"
        )


def check_at_least(key: str, count: int, least: int, of: str, why: str, remedy: str = "give more") -> None:
    """Raises `ConfigError` where there are fewer pictures, samples or features than a step or a metric takes."""
    if count < least:
        raise ConfigError(f"{key}: {least} {of} are needed ({why}), there are {count}; {remedy}")


def check_image_size(key: str, size: int, downsample_factor: int | None, only: int | None) -> None:
    """Raises `ConfigError` for images that a tokenizer cannot cut into tokens.

    Args:
        key: of the images' side.
        size: side of the images.
        downsample_factor: pixels a token, where known.
        only: the one side that the tokenizer takes, where there is one.
    """
    if only is not None and size != only:
        raise ConfigError(f"{key}: found {size}; this tokenizer takes images of {only} pixels alone; set it to {only}")
    if only is None and downsample_factor and size % downsample_factor:
        near = max(1, round(size / downsample_factor)) * downsample_factor
        raise ConfigError(
            f"{key}: found {size}; this tokenizer makes a token of {downsample_factor} pixels, so the side is a "
            f"multiple of that; set it to {near}"
        )


def check_mapped(num_workers: int, key: str = "num_workers") -> None:
    """Refuses worker processes for shards that are mapped into memory.

    Raises:
        ConfigError: there are some; sending batches between processes takes 23 times as long as reading them.
    """
    if num_workers:
        raise ConfigError(
            f"{key}: {num_workers} given, but token shards on disk are mapped into memory and read 23 times faster "
            "without worker processes; use 0"
        )
