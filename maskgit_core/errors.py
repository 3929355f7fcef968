"""Errors that speak to the person who can act.

Every error a user can cause derives from `MaskgitError`. Its text is one line: it begins with the key or
file it is about, says what was found and what is allowed, and ends with what to do. The command line prints
it without a traceback and exits with code 2. Anything else that escapes is a bug of ours.

    MaskgitError
    ├── ConfigError      a key of the config: unknown, missing, mistyped, out of range, derived
    ├── DataError        images, datasets, token shards
    ├── WeightsError     published or trained weights: missing, damaged, of another model
    ├── ArtifactError    a finished or running step's folder
    ├── LaunchError      a launcher cannot do what was asked
    └── TrackingError    MLflow cannot be reached or refuses
"""

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager


class MaskgitError(Exception):
    """Base of all errors meant for the user; one line of text."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(MaskgitError):
    """A key of the config is wrong; the text begins with the dotted key."""


class DataError(MaskgitError):
    """Images, a dataset or token shards are missing, damaged or of the wrong form; names the file."""


class WeightsError(MaskgitError):
    """Weights are missing, damaged or belong to another model; names the file and the first key."""


class ArtifactError(MaskgitError):
    """A step's folder is not what it should be; names the folder or file."""


class DiskFullError(ArtifactError):
    """There is no room on the disk, or the quota is used up; the same may work later."""


class LaunchError(MaskgitError):
    """A launcher cannot do what was asked; names the resource or setting."""


class TrackingError(MaskgitError):
    """MLflow cannot be reached or refuses; names the address."""


@contextmanager
def refused_as(kind: type[MaskgitError], told: str) -> Iterator[None]:
    """Around the parsing of a file that others made: whatever a parser raises over it is the file's fault, in one line.

    Parsers raise far more than they document (torch: IndexError, struct.error; zipfile: RuntimeError,
    NotImplementedError; numpy: TokenError, MemoryError). Errors of ours pass unchanged.

    Args:
        kind: the class of the error.
        told: its text; `{reason}` is what the parser said.
    """
    try:
        yield
    except MaskgitError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise kind(told.replace("{reason}", first or type(error).__name__)) from None


#: What people type -> names of options that mean it, the likeliest first.
SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr"), ("lr",)),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "max_steps", "iterations"), ("num_train_steps",)),
    **dict.fromkeys(("steps", "num_inference_steps", "sampling_steps"), ("num_steps", "num_train_steps")),
    **dict.fromkeys(("guidance", "cfg", "cfg_scale", "cfg_weight", "guidance_scale"), ("guidance_scale",)),
    **dict.fromkeys(("bs", "batch", "bsz", "train_batch_size", "global_batch_size"), ("batch_size",)),
    **dict.fromkeys(("wd", "decay"), ("weight_decay",)),
    **dict.fromkeys(("warmup", "num_warmup_steps"), ("warmup_steps",)),
    **dict.fromkeys(("ema", "ema_rate"), ("ema_decay",)),
    **dict.fromkeys(("depth", "layers", "n_layers"), ("num_layers",)),
    **dict.fromkeys(("width", "dim", "hidden_size", "embed_dim"), ("width", "embed_dim", "hidden_dim", "dim")),
    **dict.fromkeys(("heads", "n_heads", "num_attention_heads"), ("num_heads",)),
    **dict.fromkeys(("num_workers", "workers"), ("num_workers",)),
    **dict.fromkeys(("random_seed", "manual_seed"), ("seed",)),
    **dict.fromkeys(("resolution", "size", "img_size"), ("image_size",)),
    **dict.fromkeys(("path", "data_dir", "data_root", "folder"), ("root",)),
    **dict.fromkeys(("fp16", "bf16", "mixed_precision", "amp", "dtype"), ("precision",)),
    **dict.fromkeys(("temp", "sampling_temperature"), ("temperature", "choice_temperature")),
}


def synonyms(name: str, names: Collection[str]) -> list[str]:
    """Those of `names` that are usual words for what was written."""
    return [known for known in SYNONYMS.get(name.lower().replace("-", "_"), ()) if known in names]


def suggestion(name: str, names: Sequence[str]) -> str:
    """`did you mean X? ` where some name means or is near to what was written, or begins with it; else nothing."""
    near = synonyms(name, names) or _close(name, names, 1, 0.6) or [n for n in names if n.startswith(name)]
    return f"did you mean {near[0]}? " if near else ""


def unknown_key(key: str, name: str, allowed: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    names = sorted(allowed)
    return ConfigError(f"{key}: unknown key; {suggestion(name, names)}One of [{_nearest(name, names)}]")


def unknown_name(key: str, name: str, allowed: Iterable[str], what: str) -> ConfigError:
    """The error for a value that must be one of some names."""
    names = sorted(allowed)
    return ConfigError(f"{key}: there is no {what} {name!r}; {suggestion(name, names)}One of [{_nearest(name, names)}]")


def _nearest(name: str, names: Sequence[str]) -> str:
    """All names where they are few, else the five nearest and how many more there are."""
    if len(names) <= 25:
        return ", ".join(names)
    near = list(dict.fromkeys([*synonyms(name, names), *_close(name, names, 5, 0.0)]))[:5]
    return f"{', '.join(near)} and {len(names) - len(near)} more"


def _close(name: str, names: Sequence[str], count: int, cutoff: float) -> list[str]:
    """The names nearest to what was written, whatever its case."""
    lower: dict[str, str] = {}
    for known in names:
        lower.setdefault(known.lower(), known)
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=count, cutoff=cutoff)]
