"""Renews docs/first_hour.md: a newcomer's first hour, every command really run in a fresh clone, with its real output.

    python -m tools.first_hour --pictures FOLDER                  a clone of this checkout's last commit, set up anew
    python -m tools.first_hour --pictures FOLDER --venv .venv     the same with an environment that is there already

FOLDER holds pictures of one's own (folders of classes, or pictures); 300 of them are copied. The Markdown of the page's
commands is README.md's: a test holds each of them to stand there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, HUB = ROOT / "docs" / "first_hour.md", "http://127.0.0.1:8999"
PICTURES, HEAD, TAIL = 300, 22, 14  # pictures copied; lines kept of a long output


@dataclass(frozen=True)
class Step:
    """One command of the page; `added` goes behind it to keep the hour short, and is said."""

    title: str
    text: str
    command: str
    added: str = ""
    waits_for: str = ""  # a server: goes on once it prints this, and ends with the page


STEPS = (
    Step("The walk", "One command: photos of garments become tokens, tokens a model, the model samples and scores.",
         "make demo"),
    Step("The report", "A page of its own, without scripts: open it in a browser.", "maskgit report quickstart"),
    Step("One key changed", "The plan first: what is finished stays, and it says why the rest would run.",
         "maskgit plan quickstart sampler.guidance_scale=2"),
    Step("", "", "maskgit run quickstart sampler.guidance_scale=2"),
    Step("Beside each other", "What differs between the two, and what came of it.",
         "maskgit compare experiment=quickstart"),
    Step("Pictures of one's own", "The plan counts them and chooses sizes.",
         "maskgit plan own_images dataset.root=PATH"),
    Step("", "", "maskgit run  own_images dataset.root=PATH",
         "train_tokenizer.num_train_steps=500 train.num_train_steps=100 "
         "resources.train.cpus_per_task=1 --until sample"),
    Step("A sampler of one's own", "The five files of [contributing](contributing.md#outside-the-tree): "
         "`mylab/__init__.py` and `mylab/samplers/__init__.py` (both empty), `mylab/samplers/centre_out.py`, "
         "`mylab/conf/sampler/centre_out.yaml`, `mylab/conf/experiment/garments.yaml`.",
         "maskgit run experiment=garments --config-dir mylab/conf", "--until sample"),
    Step("To a hub and back", "A server on this machine that speaks the hub's API stands in for the hub; with an "
         "account of your own, leave out this command, and the variables of those that follow.",
         "python -m tools.local_hub", waits_for="HF_ENDPOINT"),
    Step("", "", f"HF_ENDPOINT={HUB} HF_TOKEN=any maskgit push quickstart/train me/garments"),
    Step("", "In Python, from anywhere:", f"HF_ENDPOINT={HUB} HF_TOKEN=any python samples.py"),
)  # fmt: skip
LOADED = """\
import maskgit_core as mg

model = mg.load_model("hf:me/garments")
tokenizer = mg.load_tokenizer("hf:me/garments")
images = mg.sample(model, tokenizer, labels=[0, 1, 2, 3] * 4, seed=0)
print(images.dtype, tuple(images.shape))
mg.show(images, columns=4).save("samples.png")
"""


def blocks(page: Path) -> dict[str, str]:
    """Path -> text of every file that a page shows under its name."""
    text = page.read_text()
    return {m[1]: m[2] for m in re.finditer(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL)}


def write_plugin(clone: Path) -> None:
    """The files of `mylab`, as docs/contributing.md shows them."""
    shown = blocks(clone / "docs" / "contributing.md")
    files = {
        "samplers/centre_out.py": shown["maskgit_core/samplers/centre_out.py"],
        "conf/sampler/centre_out.yaml": shown["conf/sampler/centre_out.yaml"],
        "conf/experiment/garments.yaml": shown["mylab/conf/experiment/garments.yaml"],
        "__init__.py": "",
        "samplers/__init__.py": "",
    }
    for name, text in files.items():
        path = clone / "mylab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copy_pictures(source: Path, target: Path, count: int = PICTURES) -> str:
    """Copies pictures, equally many of each folder of classes, at most three of them; says what."""
    kinds = (".jpg", ".jpeg", ".png")
    folders = [p for p in sorted(source.iterdir()) if p.is_dir()][-3:] or [source]
    total = 0
    for folder in folders:
        pictures = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in kinds][: count // len(folders)]
        into = target / folder.name if folder != source else target
        into.mkdir(parents=True, exist_ok=True)
        for path in pictures:
            shutil.copy(path, into)
        total += len(pictures)
    return f"{total} pictures in {len(folders)} folder{'s' * (len(folders) > 1)}"


def shortened(text: str) -> str:
    """Output without escapes and redrawn lines, its middle left out where it is long."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").splitlines()]
    if len(lines) > HEAD + TAIL + 3:
        lines = [*lines[:HEAD], f"... {len(lines) - HEAD - TAIL} lines ...", *lines[-TAIL:]]
    return "\n".join(lines).strip("\n")


def borrow(venv: Path, clone: Path) -> None:
    """A virtual environment of the clone's own that finds the packages of another, and the clone itself first."""
    subprocess.run([str(venv / "bin" / "python"), "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    (packages,), (own,) = (list((place / "lib").glob("python*/site-packages")) for place in (venv, clone / ".venv"))
    (own / "borrowed.pth").write_text(f"{clone}\n{packages}\n")
    command = clone / ".venv" / "bin" / "maskgit"
    command.write_text(f"#!{clone}/.venv/bin/python\nfrom experiments.cli import main\nraise SystemExit(main())\n")
    command.chmod(0o755)
    (clone / ".venv" / ".installed").touch()


class Hour:
    """A fresh clone in which commands are run one after another."""

    def __init__(self, clone: Path, home: Path, photos: Path, venv: Path | None) -> None:
        self.clone, self.photos, self._servers = clone, photos, list[subprocess.Popen[str]]()
        bin_dir = clone / ".venv" / "bin"
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("MASKGIT_", "PYTHON", "VIRTUAL_ENV"))}
        self.environment = {**keep, "PATH": f"{bin_dir}:{os.environ['PATH']}", "HF_HOME": str(home / "hf"),
                            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                            "NO_COLOR": "1", "COLUMNS": "120"}  # fmt: skip
        if venv is not None:
            borrow(venv.absolute(), clone)

    def run(self, step: Step) -> tuple[str, str]:
        """Runs a step; returns its output and how long it took.

        Raises:
            SystemExit: the command failed.
        """
        command = f"{step.command} {step.added}".strip().replace("PATH", str(self.photos))
        if step.waits_for:
            server = subprocess.Popen(
                shlex.split(command), cwd=self.clone, env=self.environment, stdout=subprocess.PIPE, text=True
            )
            self._servers.append(server)
            assert server.stdout is not None
            said = server.stdout.readline()
            return said, "" if step.waits_for in said else sys.exit(f"first_hour: {command}: {said}")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(["bash", "-c", command], cwd=self.clone, env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"first_hour: {command}: exit code {done.returncode}\n{done.stdout}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.stdout, f"{_minutes(time.monotonic() - began)}, {_minutes(cpu)} of a CPU's time"

    def close(self) -> None:
        """Ends servers."""
        for server in self._servers:
            server.terminate()
            server.wait(30)


def _minutes(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


@contextmanager
def fresh_clone(venv: Path | None, pictures: Path, home: Path) -> Iterator[tuple[Hour, str]]:
    """A clone of the last commit in `home`, with pictures beside it; one that is there goes on being used."""
    clone = home / "maskgit"
    is_new = not clone.exists()
    if is_new:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    hour = Hour(clone, home, home / "photos", venv if not (clone / ".venv").exists() else None)
    said = copy_pictures(pictures, home / "photos")
    try:
        yield hour, said
    finally:
        hour.close()


def page(told: Sequence[tuple[Step, str, str]], commit: str, pictures: str, set_up: str, hide: Sequence[str]) -> str:
    """The page's Markdown."""
    lines = [
        "# The first hour", "",
        "What a newcomer types and what it prints, from a fresh clone on. Every command is README.md's; "
        "`python -m tools.first_hour` ran them all, one after another, and wrote this page.", "",
        f"Run at commit {commit} on {time.strftime('%Y-%m-%d', time.gmtime())}: {os.cpu_count()} cores, no GPU, "
        f"Python {platform.python_version()}, other work on the machine at the same time. {set_up} "
        f"The pictures of one's own are {pictures} of CIFAR-10; `PATH` is their folder. Where output is long, its "
        "middle is left out, and says so.", "",
        "```sh", "git clone ADDRESS maskgit && cd maskgit", "```", "",
    ]  # fmt: skip
    for step, output, took in told:
        lines += [f"## {step.title}", ""] if step.title else []
        lines += [step.text, ""] if step.text else []
        if "samples.py" in step.command:
            lines += ["```python", "# samples.py", LOADED.rstrip(), "```", ""]
        lines += ["```", f"$ {f'{step.command} {step.added}'.strip()}", *([output] if output else []), "```", ""]
        if step.added:
            lines += [f"(`{step.added}` keeps the hour short; without it the plan's own numbers hold.)", ""]
        lines += [f"{took}.", ""] if took else []
    text = "\n".join(lines)
    for place in hide:
        text = text.replace(place, "~")
    return text.rstrip() + "\n"


def main() -> None:
    """Runs the hour and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--venv", type=Path, help="use this environment in place of a new one")
    parser.add_argument("--home", type=Path, help="where the clone lies and stays; an interrupted hour goes on there")
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    if args.home is not None:
        args.home.mkdir(parents=True, exist_ok=True)
        record(args, args.home.resolve())
    else:
        with tempfile.TemporaryDirectory() as name:
            record(args, Path(name).resolve())
    print(f"wrote {args.out}")


def record(args: argparse.Namespace, home: Path) -> None:
    """Runs what `home/told.json` does not hold yet, and writes the page after every step."""
    set_up = ("The virtual environment was there already, so that `make demo` shows the walk alone; making it takes "
              "about 3 minutes." if args.venv else "`make demo` made the virtual environment first.")  # fmt: skip
    notes = home / "told.json"
    told: dict[str, list[str]] = json.loads(notes.read_text()) if notes.exists() else {}
    with fresh_clone(args.venv, args.pictures, home) as (hour, pictures):
        write_plugin(hour.clone)
        (hour.clone / "samples.py").write_text(LOADED)
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=hour.clone, capture_output=True, text=True
        )
        for step in STEPS:
            if step.command not in told or step.waits_for:
                print(f"first_hour: {step.command}", flush=True)
                output, took = hour.run(step)
                told[step.command] = [shortened(output), took]
                notes.write_text(json.dumps(told, indent=1))
            done = [(step, *told[step.command]) for step in STEPS if step.command in told]
            args.out.write_text(page(done, commit.stdout.strip(), pictures, set_up, [str(home)]))


if __name__ == "__main__":
    main()
