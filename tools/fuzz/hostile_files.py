"""Files made to harm whoever reads them, from a seed: pickles, zips, npz, tars, safetensors headers and pictures.

Each maker is `maker(path, draw)`; what it writes either attacks (runs code, leaves its folder, asks for memory,
recurses) or is a sound file with a part spoilt.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: Set while hostile files are read: code that ran would make this file.
CANARY = "MASKGIT_CANARY"
HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)


class Calls:
    """Pickles as a call of a function by its name."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments

    def pickled(self) -> bytes:
        """Protocol 2, by hand: pickle itself would import the function."""
        body = pickle.dumps(self.arguments, protocol=2)[2:-1]
        return b"\x80\x02c" + f"{self.module}\n{self.name}\n".encode() + body + b"R."


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """A part flipped, cut, doubled, zeroed or replaced by a huge number."""
    data, at = bytearray(data), draw.randrange(max(len(data), 1))
    kind = draw.randrange(6)
    if kind == 0:
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + draw.randrange(1, 200)]
    elif kind == 3:
        data[at : at + draw.randrange(1, 60)] = bytes(draw.randrange(1, 60))
    elif kind == 4:
        data[at : at + 8] = struct.pack("<Q", draw.choice(HUGE))
    else:
        data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


# -- pickles and what torch.save writes --------------------------------------------------------------------------------
def hostile_pickle(draw: random.Random) -> bytes:
    """A pickle that calls, recurses or asks for memory."""
    harm = f"touch {os.environ.get(CANARY, '/nonexistent/canary')}"
    write = f"open({os.environ.get(CANARY, '/nonexistent/canary')!r},'w')"
    calls = [
        Calls("os", "system", harm), Calls("posix", "system", harm), Calls("nt", "system", harm),
        Calls("subprocess", "Popen", harm), Calls("subprocess", "check_output", ["sh", "-c", harm]),
        Calls("builtins", "eval", write), Calls("builtins", "exec", write), Calls("__builtin__", "eval", write),
        Calls("builtins", "getattr", "x", "y"), Calls("builtins", "__import__", "os"), Calls("runpy", "run_path", "/x"),
        Calls("torch", "load", "/x"), Calls("torch.hub", "load", "/x", "y"), Calls("torch.serialization", "load", "/x"),
        Calls("numpy", "load", "/x"), Calls("numpy.f2py", "compile", "x"), Calls("webbrowser", "open", "file:///x"),
        Calls("importlib", "import_module", "antigravity"), Calls("pty", "spawn", "/bin/sh"),
        Calls("shutil", "rmtree", "/nonexistent/x"), Calls("pathlib", "Path", "/x"), Calls("ctypes", "CDLL", "/x"),
        Calls("experiments.cli", "main", ["gc"]), Calls("maskgit_core.files", "write_bytes", "/x", b""),
        Calls("__main__", "main"), Calls("torch", "zeros", [2**40]), Calls("torch", "empty", 2**62),
        Calls("numpy.core.multiarray", "_reconstruct", 1, 2, 3), Calls("collections", "OrderedDict", 5),
        Calls("torch._utils", "_rebuild_tensor_v2", 1, 2, (2**40, 2**40), (1, 1), False, None),
        Calls("torch.storage", "_load_from_bytes", b"\x80\x02cos\nsystem\n."), Calls("torch", "Tensor", 2**60),
    ]  # fmt: skip
    raw = [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60), b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),
        b"\x80\x02\x8b" + struct.pack("<i", -5) + b".", b"\x80\x02" + b"(" * 200_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", b"\x80\x02N\x85" * 50_000 + b".",
        b"\x80\x02I" + b"9" * 10_000 + b"\n.", b"\x80\x05\x96" + struct.pack("<Q", 2**61),
        b"\x80\x02cos\nsystem\n.", b"\x80\x02c\xff\xfe\nx\n.", b"\x80\x02]q\x00h\x00a.", b"\x80\x02}q\x00h\x00h\x00s.",
    ]  # fmt: skip
    choice = draw.choice([*calls, *raw])
    return choice.pickled() if isinstance(choice, Calls) else choice


def pickled_file(path: Path, draw: random.Random) -> None:
    """A hostile pickle by itself, or inside what torch.save writes."""
    data = hostile_pickle(draw)
    if draw.random() < 0.5:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", draw.choice(("little", "big", "none", "")))
        archive.writestr("archive/data/0", b"\0" * 16)


def spoilt_checkpoint(path: Path, draw: random.Random) -> None:
    """A file of torch.save, spoilt."""
    import torch

    buffer = io.BytesIO()
    state = {"state_dict": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}}
    torch.save(state, buffer, _use_new_zipfile_serialization=draw.random() < 0.6)
    path.write_bytes(spoilt(buffer.getvalue(), draw))


# -- safetensors -------------------------------------------------------------------------------------------------------
def safetensors_file(path: Path, draw: random.Random) -> None:
    """A header that lies: lengths, offsets, shapes, types, nesting, duplicate and odd names."""
    good = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    entry = dict(good["a"])
    number = draw.choice((*HUGE, -1, 0, 1.5, None, "16", [], {}, True))
    entry[draw.choice(list(entry))] = draw.choice(
        (number, [number], [0, number], [number, number], [number] * 3, "F99", {}, [[2, 2]], [2] * 5000)
    )
    sound, first = json.dumps(good), good["a"]
    headers: list[bytes] = [
        json.dumps({"a": entry}).encode(), json.dumps({**good, "b": entry}).encode(), b"[" * 100_000, b'{"a":' * 50_000,
        b"{}", b"[]", b"5", b"null", b'{"a": {}}', b'{"a": []}', b'{"__metadata__": 5}', b'{"\xff": {}}',
        f"{sound[:-1]}, {sound[1:]}".encode(), sound.encode() + b" " * 1_000_000, json.dumps({"": first}).encode(),
        json.dumps({"../../x": first}).encode(), json.dumps({"a\0b": first}).encode(), b"{" + b"9" * 5000 + b"}",
    ]  # fmt: skip
    header = draw.choice(headers)
    length = draw.choice((len(header), len(header), len(header), len(header) - 1, len(header) + 5, *HUGE))
    path.write_bytes(struct.pack("<Q", length) + header + bytes(draw.choice((16, 16, 0, 8, 4096))))


# -- npz ---------------------------------------------------------------------------------------------------------------
def npy(header: bytes, data: bytes = b"\0" * 64, version: bytes = b"\x01\x00") -> bytes:
    """A member with this header as it stands."""
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", min(len(header), 65535))
    return b"\x93NUMPY" + version + size + header + data


def npz_file(path: Path, draw: random.Random) -> None:
    """Pickled arrays, headers that are code, lie or recurse, spoilt zips, encrypted and unknown members."""
    write = f"__import__('os').system('touch {os.environ.get(CANARY, '/nonexistent/canary')}')"
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    head, shape = b"\x93NUMPY\x01\x00v\x00", draw.choice(HUGE)
    members = [
        objects.getvalue(), npy(f"{{'descr': {write}, 'fortran_order': False, 'shape': (2,)}}\n".encode()),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}\n" % shape),
        npy(b"{'descr': '<i8', 'fortran_order': True, 'shape': (%d, 2)}\n" % shape),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}\n" + hostile_pickle(draw)),
        npy(b"(" * 9000), npy(b"[" * 60_000 + b"]" * 5), npy(b"-" * 60_000 + b"1"), npy(b"{'descr': " + b"'a'*" * 999),
        npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}\n"),
        npy(b"{'descr': 'V2147483647', 'fortran_order': False, 'shape': (9,)}\n"),
        npy(b"{'descr': '<U99999999', 'fortran_order': False, 'shape': (9,)}\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': ()}\n"), npy(b"5\n"), npy(b"\xff\xfe"), head, b"",
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}\n", version=b"\x02\x00"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}\n", version=b"\x09\x00"), hostile_pickle(draw),
    ]  # fmt: skip
    name = draw.choice(("idx.npy", "idx.npy", "arr_0.npy", "mu.npy", "idx", "../../idx.npy", "/idx.npy", "a/idx.npy"))
    buffer = io.BytesIO()
    compression = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, draw.choice(members))
        for other in ("idx.npy", "arr_0.npy", "mu.npy", "sigma.npy"):
            if other != name:
                good = io.BytesIO()
                np.save(good, np.zeros((4, 4), dtype=np.int64))
                archive.writestr(other, good.getvalue() if draw.random() < 0.7 else draw.choice(members))
    data = bytearray(buffer.getvalue())
    kind = draw.randrange(6)
    if kind == 0:
        data = bytearray(spoilt(bytes(data), draw))
    elif kind == 1:  # encrypted, or compressed in a way nobody knows: in every header
        offset, value = draw.choice(((6, 1), (8, 99), (8, 12), (8, 14)))
        for mark, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            at = data.find(mark)
            while at >= 0:
                data[at + offset + more] = value
                at = data.find(mark, at + 4)
    path.write_bytes(bytes(data))


def bomb_npz(path: Path, draw: random.Random) -> None:
    """A small file that unpacks to far more than its header says, or to what no memory holds."""
    count = draw.choice((10**9, 3 * 10**9))
    header = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},)}}\n".encode(), b"")
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = squeezed.compress(header) + b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(64)) + squeezed.flush()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("idx.npy", b"")
    info = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 0, 0, len(body), 2**31, 7, 0) + b"idx.npy"
    central = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 0, 0, len(body), 2**31, 7, 0, 0, 0, 0, 0, 0
    )
    place = len(info) + len(body)
    central += b"idx.npy"
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), place, 0)
    path.write_bytes(info + body + central + end)


# -- tar ---------------------------------------------------------------------------------------------------------------
def tar_file(path: Path, draw: random.Random) -> None:
    """Names that leave the folder, links, devices, sparse files, sizes that lie, odd PAX headers, nested tars."""
    buffer = io.BytesIO()
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(picture, "PNG")
    form = draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for number in range(draw.randrange(1, 5)):
            name = draw.choice(("../../evil.png", "/tmp/evil.png", f"{number}.png", "a/../../b.png", "x.tar", "é.png",
                                "n" * 90 + ".png", "con\nrol.png", ".png", f"{number}.tokens.npy"))  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type = draw.choice((tarfile.REGTYPE,) * 5 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
                                     tarfile.FIFOTYPE, tarfile.DIRTYPE, b"Z", tarfile.GNUTYPE_SPARSE))  # fmt: skip
            info.linkname = draw.choice(("/etc/passwd", "../../x", name, "")) if not info.isreg() else ""
            if form == tarfile.PAX_FORMAT and draw.random() < 0.4:
                key = draw.choice(
                    ("size", "mtime", "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.major", "path")
                )
                info.pax_headers = {key: draw.choice(("-1", "nan", "9" * 400, "x", "", "1,2,3", str(2**62)))}
            info.size = len(picture.getvalue()) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(picture.getvalue()))
    data = bytearray(buffer.getvalue())
    if draw.random() < 0.5:
        data = bytearray(spoilt(bytes(data), draw))
    elif draw.random() < 0.6:  # another size in the first header, with a right checksum
        size = draw.choice(
            (b"77777777777\0", b"\x80" + b"\0" * 3 + struct.pack(">Q", 2**62), b"\xff" * 12, b"-0000000001\0")
        )
        data[124:136] = size
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(bytes(data))


# -- pictures ----------------------------------------------------------------------------------------------------------
def picture_file(path: Path, draw: random.Random) -> None:
    """A sound picture spoilt, one whose header asks for terabytes, or something else under its name."""
    form = draw.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "SGI"))
    mode = draw.choice(("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK", "F"))
    buffer = io.BytesIO()
    try:
        Image.new(mode, (16, 16)).save(buffer, form)
    except (OSError, ValueError, KeyError):
        Image.new("RGB", (16, 16)).save(buffer, "PNG")
        form = "PNG"
    data = bytearray(buffer.getvalue())
    kind = draw.randrange(4)
    if kind == 0 and form == "PNG":
        data[16:24] = struct.pack(">II", draw.choice((2**31 - 1, 100_000, 0)), draw.choice((2**31 - 1, 100_000, 1)))
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif kind == 1:
        bomb = zlib.compress(bytes(70 << 20), 9)
        chunk = b"zTXta\0\0" + bomb
        data[33:33] = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    elif kind == 2:
        data = bytearray(draw.choice((b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n", b"<svg/>", b"GIF89a", b"\xff\xd8\xff", b"",
                                      b"P6\n999999999 999999999\n255\n", b"II*\0\x08\0\0\0\xff\xff")))  # fmt: skip
    else:
        data = bytearray(spoilt(bytes(data), draw))
    path.write_bytes(bytes(data))


MAKERS: dict[str, Callable[[Path, random.Random], None]] = {
    "pickle.ckpt": pickled_file,
    "checkpoint.pt": spoilt_checkpoint,
    "x.safetensors": safetensors_file,
    "x.npz": npz_file,
    "bomb.npz": bomb_npz,
    "x.tar": tar_file,
    "x.png": picture_file,
}
