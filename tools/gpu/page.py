"""The page of one card: what `python -m tools.gpu --write` leaves in `docs/`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.rig import Figure


def write(lines: Sequence[Figure], folder: Path) -> Path:
    """Writes `gpu_<card>.md` and gives its path; a later run on such a card replaces the sections that it measured."""
    card = re.sub(r"[^a-z0-9]+", "_", str(lines[0]["device"]).lower()).strip("_")
    path = folder / f"gpu_{card}.md"
    path.write_text(text([*_kept(path, lines), *lines[1:]], lines[0]))
    return path


def _kept(path: Path, lines: Sequence[Figure]) -> list[Figure]:
    """Lines of sections that the page has and this run did not measure; each says where it comes from."""
    if not path.exists():
        return []
    before = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    measured = {line["section"] for line in lines}
    commit = before[0].get("commit")
    return [{"commit": commit, **line} for line in before[1:] if line["section"] not in measured]


def text(lines: Sequence[Figure], machine: Figure) -> str:
    """The page: machine, goals, a table a section, and the lines themselves."""
    told = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("section", "device", "dry"))
    page = f"# {machine['device']}\n\n`python -m tools.gpu --write`: {told}.\n"
    goals = [line for line in lines if "goal" in line]
    if goals:
        page += "\n## Goals\n\n| figure | goal | measured | reached |\n|---|---|---|---|\n"
        for line in goals:
            at = f"{line['section']}, {line['name']}, batch {line.get('batch')}"
            page += f"| {at} | {line['goal']} | {line['value']} | {'yes' if line['reached'] else 'no'} |\n"
    for section in dict.fromkeys(line["section"] for line in lines):
        page += f"\n## {section}\n\n| figure | value | unit | settings |\n|---|---|---|---|\n"
        page += "".join(_row(line) for line in lines if line["section"] == section)
    raw = "\n".join(json.dumps(line) for line in (machine, *lines))
    return f"{page}\n## Lines\n\n```json\n{raw}\n```\n"


def _row(line: Figure) -> str:
    if "failed" in line:
        return f"| failed | | | {line['failed']} |\n"
    settings = {k: v for k, v in line.items() if k not in ("section", "name", "value", "unit", "goal", "reached")}
    told = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    return f"| {line['name']} | {line.get('value', '')} | {line.get('unit', '')} | {told} |\n"
