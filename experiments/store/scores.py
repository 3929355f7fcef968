"""Scores as the evaluation stages leave them: a number never without what it is of and the protocol behind it.

`scores.json`: `{"scores": [{"name", "of", "value", "num_images", "protocol"}, ...], "protocols": {name: {...}}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.store.documents import Headline
from experiments.store.typed_json import Options, fingerprint
from maskgit_core.files import read_json

#: What scores are of: those of the first of these that a step has scores of need no suffix in a metric's key.
SUBJECTS = ("samples", "reconstructions")
#: Metric -> (title, is lower better?). A metric of a feature network of its own name is known by its prefix.
METRICS: dict[str, tuple[str, bool | None]] = {
    "fid": ("FID", True),
    "sfid": ("sFID", True),
    "kid": ("KID", True),
    "inception_score": ("IS", False),
    "precision": ("Precision", False),
    "recall": ("Recall", False),
    "density": ("Density", False),
    "coverage": ("Coverage", False),
    "psnr": ("PSNR", False),
    "ssim": ("SSIM", False),
    "psnr_pooled": ("PSNR (pooled)", False),
    "ssim_gaussian": ("SSIM (Gaussian)", False),
    "ssim_uniform": ("SSIM (uniform)", False),
    "ms_ssim": ("MS-SSIM", False),
    "ssim_range_2": ("SSIM (data range 2)", False),
    "lpips": ("LPIPS", True),
    "nll": ("NLL", True),
    "cas_top1": ("CAS top-1", False),
    "cas_top5": ("CAS top-5", False),
    "codebook_usage": ("Codebook usage", False),
    "codebook_perplexity": ("Codebook perplexity", False),
    "class_accuracy": ("Class accuracy", False),
    "floor_to_ceiling": ("(FD - floor) / (ceiling - floor)", True),
}
PREFIXES: dict[str, tuple[str, bool | None]] = {"fd_": ("FD", True)}


@dataclass(frozen=True)
class Score:
    """One number with what gives it its meaning."""

    name: str
    of: str
    value: float
    num_images: int | None = None
    protocol: str = ""
    details: Options = field(default_factory=dict)  # everything that fixes what the number means
    subject: str = "samples"  # what its step is about

    @property
    def key(self) -> str:
        """`fid` of what the step is about, `fid/real_images` of anything else beside it."""
        return self.name if self.of == self.subject else f"{self.name}/{self.of.replace(' ', '_')}"

    @property
    def comparable(self) -> str:
        """Equal for numbers that may be compared: same metric, subject, count and protocol to the last detail."""
        return fingerprint([self.key, self.num_images, self.protocol, self.details])


def read_scores(files: Path, headline: Headline | None = None) -> list[Score]:
    """The scores in a step's `scores.json`; the headline alone where there is no such file."""
    written = read_json(Path(files) / "scores.json")
    scores = []
    if isinstance(written, Mapping):
        protocols = written.get("protocols") or {}
        of = {row.get("of", "samples") for row in written.get("scores") or ()}
        subject = next((s for s in SUBJECTS if s in of), "samples")
        for row in written.get("scores") or ():
            known = ("name", "of", "value", "num_images", "protocol")
            more = {k: v for k, v in row.items() if k not in (*known, "note")}
            name = str(row.get("protocol") or "")
            scores.append(
                Score(
                    name=str(row["name"]),
                    of=str(row.get("of", "samples")),
                    value=float(row["value"]),
                    num_images=row.get("num_images"),
                    protocol=name,
                    details={**protocols.get(name, {}), **more},
                    subject=subject,
                )
            )
    if not scores and headline:
        about = headline.protocol or {}
        name = str(about.get("name", ""))
        scores.append(Score(headline.name, "samples", headline.value, protocol=name, details=about))
    return scores


def named_values(scores: Sequence[Score]) -> dict[str, float]:
    """Values by name: the first protocol's under their keys, those of further protocols as `<protocol>/<key>`."""
    first = scores[0].protocol if scores else ""
    return {s.key if s.protocol == first else f"{s.protocol}/{s.key}": s.value for s in scores}


def describe_metric(name: str) -> tuple[str, bool | None] | None:
    """Title and direction of a metric (`fid`, `fd_x/real_images`); None where it is unknown."""
    base = name.partition("/")[0]
    if base in METRICS:
        return METRICS[base]
    for prefix, known in PREFIXES.items():
        if base.startswith(prefix) and len(base) > len(prefix):
            return (f"{known[0]} ({base[len(prefix) :]})", known[1])
    return None


def differences(one: Options, other: Options, prefix: str = "") -> list[str]:
    """Keys in which two protocols differ, as `reference.split: train, val`."""
    differing = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differing += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            differing.append(f"{prefix}{key}: {a}, {b}")
    return differing


def unlike(one: Score, other: Score) -> str:
    """Why two scores may not be compared; empty where they may."""
    if one.comparable == other.comparable:
        return ""
    if one.key != other.key:
        return f"{one.key} and {other.key}"
    if one.protocol != other.protocol:
        return f"protocols {one.protocol or 'unnamed'} and {other.protocol or 'unnamed'}"
    if one.num_images != other.num_images:
        return f"num_images: {one.num_images}, {other.num_images}"
    return "; ".join(differences(one.details, other.details)[:3])
