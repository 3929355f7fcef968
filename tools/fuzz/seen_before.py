"""The attacks that once succeeded, each with its command and what it prints now: `python -m tools.fuzz.seen_before`.

The numbers are those of `docs/drills_solid.txt`, which holds the last output; 3 and 4 are `tools.fuzz.kills` and
`tools.fuzz.users`, 11 is `tests/experiments/planning/test_mixed_code.py`. Paths are shortened, long lines cut.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from tools.fuzz.commands import LAB, ROOT, Fork, ask, request

WIDTH, SHOWN = 200, 12
PASSWORD = "s3cret-pa55"
CLAIMS = ("", "null", "[]", "{}", "5")


class Store:
    """A store in a folder of its own, and commands about it."""

    def __init__(self, place: Path) -> None:
        self.place, self.root = place, place / "store"
        self.traces: list[str] = []

    def show(self, text: str) -> None:
        """Prints lines, shortened."""
        for line in text.replace(str(self.root), "STORE").replace(str(self.place), "").splitlines():
            print(f"    {line}"[:WIDTH])

    def told(self, *typed: str, experiment: str | None = None, most: int = SHOWN) -> str:
        """Runs a command and prints it with its output; an experiment makes it a request of the toy lab."""
        more = request(self.root, experiment)[1:] if experiment else []
        where = [] if experiment or typed[0] in ("config", "plan") else ["--store", str(self.root)]
        named = [f"experiment={experiment}"] if experiment else []
        answer = ask(typed[0], *named, *typed[1:], *more, *where)
        self.traces += [answer.trace] if answer.trace else []
        print("$ maskgit", *(word.replace(str(self.root), "STORE") for word in (typed[0], *named, *typed[1:])))
        lines = answer.text.splitlines()
        self.show("\n".join([*lines[:most], *(["..."] if len(lines) > most else [])]))
        print(f"    -> {answer.code}")
        return answer.text

    def folder(self, stage: str) -> Path:
        """The only step of a stage."""
        (found,) = self.root.glob(f"{stage}/*")
        return found


def gc(store: Store) -> None:
    """1: an experiment run again, long labels, an unlistable folder, a damaged record, a run given up."""
    ask("run", *request(store.root))
    ask("run", *request(store.root, "chain", "numbers.scale=2"))
    store.told("gc", "--delete", "--yes")
    files = [store.place / ("a" * 190) / name / "numbers.json" for name in ("one", "two")]
    for value, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_text(str(value))
    code = ask("run", *request(store.root, "chain", f"numbers.source={files[0]},{files[1]}")).code
    labels = [len(path.name) for path in (store.root / "experiments" / "chain").iterdir()]
    done = len(list(store.root.glob("*/*/manifest.json")))
    print(
        f"a sweep with long labels: {code}; links {len(labels)}, names of up to {max(labels)} characters; done {done}"
    )
    store.told("gc", "--delete", "--yes")
    experiments, aside = store.root / "experiments", store.root / "aside"
    experiments.rename(aside)
    experiments.write_text("no folder")
    store.told("gc", "--delete", "--yes")
    experiments.unlink()
    aside.rename(experiments)
    record = max((store.root / "pipelines").glob("*.json"))
    whole = record.read_text()
    record.write_text(whole[:60])
    store.told("gc", "--delete", "--yes")
    record.write_text(whole)
    store.told("gc", "--drop", min((store.root / "pipelines").glob("*.json")).stem)
    store.told("gc", "--delete", "--yes")
    store.told("gc", "--empty-trash")


def manifests(store: Store) -> None:
    """2: damaged manifests, and an output that was changed while its size and time stayed."""
    ask("run", *request(store.root))
    for path in store.root.glob("*/*/manifest.json"):
        path.write_text(path.read_text()[:60])
    store.told("status")
    store.told("plan", experiment="chain")
    store.told("run", experiment="chain")
    store.told("run", "--redo", "numbers", experiment="chain")
    output = store.folder("numbers") / "files" / "numbers.json"
    info = output.stat()
    output.write_text(output.read_text().replace("4", "5", 1))
    os.utime(output, ns=(info.st_atime_ns, info.st_mtime_ns))
    store.told("verify", "--deep")
    store.told("run", "--redo", "numbers", experiment="chain")
    store.told("verify", "--deep")


def passwords(store: Store) -> None:
    """5: a password in the address of a tracking server."""
    uri = f"http://ada:{PASSWORD}@tracker.example:5000"
    ask("run", *request(store.root))
    store.told("run", f"tracking.uri={uri}", experiment="chain")
    store.told("sync", "--uri", uri)
    store.told("config", f"tracking.uri={uri}", experiment="chain", most=6)
    holding = [str(p) for p in store.root.rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
    print("files of the store that hold the password:", holding)


def claims(store: Store) -> None:
    """6: claims that cannot be read, and one of a host that is gone."""
    ask("run", *request(store.root))
    ask("run", *request(store.root, "chain"), "--redo", "total")
    total = store.folder("total")
    claim, mine = total / "claim.json", request(store.root)
    (total / "manifest.json").unlink()
    for text in CLAIMS:
        claim.write_text(text)
        print(f"claim.json holds {text!r}:")
        store.told("run", experiment="chain")
    store.told("unlock", str(total))
    owner = {"host": "gone-node", "boot": "", "pid": 77, "pid_start": 1, "user": "ada"}
    claim.write_text(json.dumps(owner))
    print("a claim of a dead other host, `maskgit run` for 8 s, then TERM:")
    process = Fork(["run", *mine])
    time.sleep(8)
    process.kill(signal.SIGTERM)
    answer = process.wait()
    store.show(answer.text)
    print(f"    -> {answer.code}")
    store.told("unlock", str(total))
    store.told("unlock", str(total), "--force")
    store.told("run", experiment="chain")


def called(store: Store, shown: str, call: Callable[[], object]) -> None:
    """Prints a call of Python, and its result or error."""
    began = time.monotonic()
    try:
        result = repr(call())
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    print(f">>> {shown}")
    store.show(f"{result}   ({time.monotonic() - began:.1f} s)")


def addresses(store: Store) -> None:
    """7: addresses of token shards."""
    from maskgit_core.shards.remote import RemoteShards

    mark = store.place / "x"
    for address in (f"pipe:touch {mark} #", f"PIPE:touch {mark}", "ftp://h/x", f"gs://b'; touch {mark}; '",
                    "https://127.0.0.1:9/x", "http://127.0.0.1:9/x"):  # fmt: skip
        shown = address.replace(str(store.place), "")
        called(store, f"RemoteShards({shown!r}, cache)", lambda a=address: RemoteShards(a, store.place / "cache"))  # type: ignore[misc]
    print("executed:", mark.exists())


def pictures(store: Store) -> None:
    """8: pictures whose meaning or size is not what it seems."""
    import numpy as np
    from PIL import Image

    from maskgit_core.images.pictures import read_picture

    place = store.place
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(place / "grey16.png")
    Image.fromarray(ramp.astype(np.float32)).save(place / "float.tiff")
    (place / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    begun = (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (place / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + begun + (0).to_bytes(4, "big") + b"IDAT" + b"\0" * 64)
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(place / "cmyk.jpg")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 8, 7] * 256)
    palette.save(place / "palette.png")
    called(
        store,
        "read_picture('grey16.png', 1): whether it is the ramp 0..255",
        lambda: np.array_equal(np.asarray(read_picture(place / "grey16.png", 1)).ravel(), np.arange(256)),
    )
    for name in ("float.tiff", "eps.png", "bomb.png"):
        called(store, f"read_picture({name!r})", lambda n=name: read_picture(place / n))  # type: ignore[misc]
    for name in ("cmyk.jpg", "palette.png"):
        called(store, f"read_picture({name!r}): its first pixel",
               lambda n=name: np.asarray(read_picture(place / n)).reshape(-1, 3)[0].tolist())  # type: ignore[misc]  # fmt: skip


def configs(store: Store) -> None:
    """9: values that no config should hold."""
    for typed in ("numbers.count=range(0,1e9)", "sweep.grid={numbers.count: [1,2], paths.store: [/a,/b]}",
                  "paths.store=/a,/b", "launcher=slurm,inline", "name='a\\nb'", "numbers.count='${numbers.count}'",
                  "numbers.scale=.nan", f"numbers.count={'9' * 4300}", "numbers.count=[[1],[2]]", "~numbers",
                  "a.b.c=1"):  # fmt: skip
        answer = ask("plan", "experiment=chain", typed, "--config-dir", str(LAB))
        store.traces += [answer.trace] if answer.trace else []
        print(f"$ maskgit plan experiment=chain {typed[:80]}")
        store.show(answer.text)
        print(f"    -> {answer.code}")


def idle_keys(store: Store) -> None:
    """10: keys that would change nothing."""
    for typed in ("lr=1e-4", "num_train_steps=5", "batch_size=4", "lr=1e-4,1e-3", "name=tiny"):
        store.told("plan", "experiment=quickstart", typed)


def provenance(store: Store) -> None:
    """12: the packages copied into a folder of another git repository."""
    other = store.place / "other"
    other.mkdir()
    for name in ("experiments", "launchers", "maskgit_core", "conf"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    (other / "theirs.txt").write_text("theirs")
    for arguments in (["init", "-q"], ["add", "theirs.txt"], [*identity, "commit", "-qm", "theirs"]):
        subprocess.run(["git", *arguments], cwd=other, check=True)
    code = "from experiments.store import provenance as p; s = p.code_state(); print(s.commit, s.source_sha256[:16])"
    environment = {**os.environ, "PYTHONPATH": str(other)}
    done = subprocess.run([sys.executable, "-c", code], cwd=other, env=environment, capture_output=True, text=True)
    print(f"$ python -c '{code}'")
    store.show(done.stdout + done.stderr)


def reasons(store: Store) -> None:
    """13: when a failed step's reason is told, counts beyond what there is, stray files."""
    store.told("run", "numbers.fail=refuse", experiment="fanin", most=24)
    store.told("plan", "experiment=quickstart", "evaluate.num_images=999999", most=2)
    print("stray .tmp files:", [p.name for p in store.root.rglob(".*.tmp")])


PARTS = {1: gc, 2: manifests, 5: passwords, 6: claims, 7: addresses, 8: pictures, 9: configs, 10: idle_keys,
         12: provenance, 13: reasons}  # fmt: skip


def main() -> int:
    """Prints all of them; 1 where a command ended in a traceback."""
    traces: list[str] = []
    for number, part in PARTS.items():
        with tempfile.TemporaryDirectory() as place:
            print(f"\n{number}. {(part.__doc__ or '').partition(': ')[2].rstrip('.')}")
            store = Store(Path(place))
            part(store)
            traces += store.traces
    return 1 if traces else 0


if __name__ == "__main__":
    raise SystemExit(main())
