"""The byte layout of a token shard: a plain ustar archive whose samples all take the same number of bytes.

A sample is two or more members under its key: `KEY.cls` (the label, ten characters), `KEY.tokens.npy` (variants ×
height × width token ids) and, where asked for, `KEY.boxes.npy` and `KEY.latents.npy`. Every member has a fixed size, so
sample i begins at byte i * stride: the archive is a strided array that can be mapped, and that WebDataset reads too.
Two variants of 256 uint16 ids take 3072 bytes a sample.

Shapes: N samples, V variants, H × W grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from maskgit_core.errors import DataError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
LABEL_CHARS = 10
KEY_CHARS = 84
LONG_KEYS = "__long_keys__"  # WebDataset passes over members of this form
_PLAIN_KEY = re.compile(r"(?!/|__)[A-Za-z0-9_/.-]{1,60}(?<!/)\Z")


def token_dtype(codebook_size: int) -> np.dtype:
    """The smallest unsigned little-endian integer type that holds ids in [0, codebook_size)."""
    for name, top in (("|u1", 1 << 8), ("<u2", 1 << 16), ("<u4", 1 << 32)):
        if codebook_size <= top:
            return np.dtype(name)
    raise DataError(f"codebook_size: {codebook_size} is larger than 2^32; token shards hold at most 32-bit ids")


def encode_key(key: str) -> str:
    """The archive name of a sample's key: dots (WebDataset splits there) and odd characters as %XX, long keys cut.

    Raises:
        DataError: the key is empty.
    """
    if _PLAIN_KEY.match(key) and key.count(".") < 10:
        return key.replace(".", "%2E")  # the usual case, and quick
    if not key:
        raise DataError("key: a sample has an empty key; every sample needs a name")
    name = quote(key, safe="/_-").replace(".", "%2E").replace("~", "%7E")
    if name.startswith(("/", "__")):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if name.endswith("/"):
        name = f"{name[:-1]}%2F"
    if len(name) > KEY_CHARS:
        cut = name[: KEY_CHARS - 24].rstrip("%/")
        name = f"{cut}~{sha256(key.encode()).hexdigest()[:20]}"
    return name


def decode_key(name: str, long_keys: dict[str, str]) -> str:
    """The sample's key from its archive name; `long_keys` maps cut names to whole keys."""
    return long_keys.get(name) or unquote(name)


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of a version 1.0 `.npy` file; written out here so that its bytes never change with numpy."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = -(-(10 + len(text) + 1) // 64) * 64
    text = text.ljust(length - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@dataclass(frozen=True)
class Member:
    """One fixed-size file of a sample: its suffix, its constant head and its array."""

    suffix: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # of its tar header, from the sample's first byte

    @property
    def head(self) -> bytes:
        """The bytes before the array: none in `.cls`, the npy header elsewhere."""
        return b"" if self.suffix == "cls" else npy_header(self.dtype, self.shape)

    @property
    def array_bytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def data_offset(self) -> int:
        """Of the array, from the sample's first byte."""
        return self.offset + BLOCK + len(self.head)

    @property
    def end(self) -> int:
        """Of the member with its padding."""
        size = len(self.head) + self.array_bytes
        return self.offset + BLOCK + -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Layout:
    """The offsets within a shard.

    Args:
        codebook_size: K; fixes the type of the token ids.
        grid: (H, W).
        num_variants: V.
        boxes: whether each variant's crop box is kept (left, top, width, height, flipped; int32).
        latents: shape (C, H, W) of float16 latents kept per variant, or None.
    """

    codebook_size: int
    grid: tuple[int, int]
    num_variants: int = 1
    boxes: bool = False
    latents: tuple[int, int, int] | None = None
    members: dict[str, Member] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts: list[tuple[str, np.dtype, tuple[int, ...]]] = [
            ("cls", np.dtype("S1"), (LABEL_CHARS,)),
            ("tokens.npy", token_dtype(self.codebook_size), (self.num_variants, *self.grid)),
        ]
        if self.boxes:
            parts.append(("boxes.npy", np.dtype("<i4"), (self.num_variants, 5)))
        if self.latents:
            parts.append(("latents.npy", np.dtype("<f2"), (self.num_variants, *self.latents)))
        members: dict[str, Member] = {}
        offset = 0
        for suffix, dtype, shape in parts:
            members[suffix] = Member(suffix, dtype, shape, offset)
            offset = members[suffix].end
        object.__setattr__(self, "members", members)

    @property
    def stride(self) -> int:
        """Bytes from one sample to the next; a multiple of 512."""
        return max(member.end for member in self.members.values())

    def to_json(self) -> dict[str, object]:
        """Plain data from which `from_json` makes the same layout."""
        return {
            "codebook_size": self.codebook_size,
            "grid": list(self.grid),
            "num_variants": self.num_variants,
            "boxes": self.boxes,
            "latents": list(self.latents) if self.latents else None,
            "dtype": self.members["tokens.npy"].dtype.str,
            "sample_bytes": self.stride,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """The layout that `to_json` described."""
        latents = tuple(data["latents"]) if data.get("latents") else None
        return cls(data["codebook_size"], tuple(data["grid"]), data["num_variants"], data["boxes"], latents)

    def array(self, buffer: np.ndarray, suffix: str, count: int, first_byte: int = 0) -> np.ndarray:
        """A view of one member's arrays in a shard's bytes: shape (count, *member shape), nothing copied.

        Args:
            buffer: uint8, one dimension; writeable if the view shall be.
            suffix: of the member.
            count: number of samples.
            first_byte: where in `buffer` the shard begins.
        """
        member = self.members[suffix]
        inner = np.empty(member.shape, dtype=member.dtype).strides
        return np.ndarray(
            shape=(count, *member.shape),
            dtype=member.dtype,
            buffer=buffer.data,
            offset=first_byte + member.data_offset,
            strides=(self.stride, *inner),
        )


def read_labels(characters: np.ndarray) -> np.ndarray:
    """(N, 10) characters as (N,) int64 labels."""
    return np.ascontiguousarray(characters).view(f"S{LABEL_CHARS}").reshape(-1).astype(np.int64)
