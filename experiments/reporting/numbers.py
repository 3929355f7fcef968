"""Scores on a page: the headline placed between floor and ceiling, one table, every protocol once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.config.specs import Input
from experiments.console import number
from experiments.store.code_digests import unlike_code
from experiments.store.documents import Manifest, Record
from experiments.store.scores import Score, describe_metric, differences, read_scores
from experiments.store.typed_json import Block, Options

FLOOR, CEILING = "real images", "untrained model"
ROLES = {FLOOR: "floor: real images", CEILING: "ceiling: an untrained model", "samples": "samples",
         "reconstructions": "the tokenizer's reconstructions"}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A number on the bar; `at` is its place in percent of the bar."""

    label: str
    value: str
    at: float
    style: str


@dataclass(frozen=True)
class Placed:
    """The headline number, and where it stands between what real pictures and an untrained model score."""

    name: str
    value: str
    of: str
    sentence: str
    marks: tuple[Mark, ...]
    bar: str = ""  # how the bar is drawn: "rising" where higher is better, "open" where nothing says how bad is bad


def label_of(item: Input) -> str:
    """A step's name with the sweep's values."""
    values = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in item.params.items())
    return f"{item.name} [{values}]" if values else item.name


def scores_of(item: Input) -> list[Score]:
    """The scores of a step."""
    manifest = Manifest.read(item.folder)
    return read_scores(Path(item.files), manifest.headline if manifest else None)


def headline_of(item: Input) -> Score | None:
    """The score a step is known by, with its protocol."""
    manifest = Manifest.read(item.folder)
    if manifest is None or manifest.headline is None:
        return None
    return next((s for s in scores_of(item) if s.key == manifest.headline.name), None)


def placed(item: Input) -> Placed | None:
    """The step's headline number on a bar with everything of its kind; None where a step has none."""
    head = headline_of(item)
    if head is None:
        return None
    alike = {
        s.of: s
        for s in reversed(scores_of(item))
        if (s.name, s.protocol, s.num_images) == (head.name, head.protocol, head.num_images)
    }
    known, title = describe_metric(head.name), head.name
    others = {of: alike[of] for of in ROLES if of in alike}
    others.setdefault(head.of, head)
    falls = known is None or known[1] is not False
    better = "" if known is None or known[1] is None else (" Lower is better." if known[1] else " Higher is better.")
    bar = "open" if CEILING not in others else "" if falls else "rising"
    return Placed(
        title, number(head.value), head.of, _sentence(item, head, others) + better, _marks(head, others, falls), bar
    )


def _marks(head: Score, others: Mapping[str, Score], falls: bool) -> tuple[Mark, ...]:
    """Everything of the headline's kind on the bar; without a ceiling the worst of it stands at two thirds."""
    low, high = min(s.value for s in others.values()), max(s.value for s in others.values())
    if len(others) < 3 or high <= low:  # two alone would stand at the ends, whatever they are
        return ()
    if CEILING not in others:
        low, high = (low, high + (high - low) / 2) if falls else (low - (high - low) / 2, high)
    return tuple(
        Mark(ROLES.get(of, of), number(s.value), 100 * (s.value - low) / (high - low),
             "head" if of == head.of else "other")
        for of, s in sorted(others.items(), key=lambda pair: pair[1].value)
    )  # fmt: skip


def _sentence(item: Input, head: Score, others: Mapping[str, Score]) -> str:
    told = []
    if FLOOR in others and CEILING in others and others[CEILING].value != others[FLOOR].value:
        share = (head.value - others[FLOOR].value) / (others[CEILING].value - others[FLOOR].value)
        told.append(
            f"{share:.0%} of the way from what real pictures score (the floor, {number(others[FLOOR].value)}) to what "
            f"an untrained model's samples score (the ceiling, {number(others[CEILING].value)})."
        )
    elif FLOOR in others:
        told.append(
            f"Real pictures score {number(others[FLOOR].value)} (the floor). No untrained model was scored beside it, "
            "so the bar has no ceiling."
        )
    rows = {s.key: s.value for s in scores_of(item)}
    if "class_accuracy" in rows and head.name != "class_accuracy":
        real = rows.get("class_accuracy/real_images")
        beside = f", and {real:.1%} of real test pictures" if real is not None else ""
        told.append(
            f"A small classifier trained on real pictures names {rows['class_accuracy']:.1%} of the samples as the "
            f"class they were asked for{beside}."
        )
    if head.num_images is not None:
        told.append(f"Measured over {head.num_images:,} pictures of each, under the protocol {head.protocol}.")
    return " ".join(told)


def table(inputs: Sequence[Input]) -> Block | None:
    """Every number once, with what it is of and its protocol, the headline's kind first."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for item in inputs:
        for score in scores_of(item):
            count = "" if score.num_images is None else f"{score.num_images:,}"
            cells = [score.name, score.of, f"{score.value:.5g}", count, score.protocol]
            rows.setdefault(tuple(cells), [*cells, label_of(item)])
    if not rows:
        return None
    return {"header": ["score", "of", "value", "pictures", "protocol", "step"], "rows": list(rows.values())}


def floors_differ(inputs: Sequence[Input]) -> list[str]:
    """Why two steps give real pictures different numbers under one name; empty where they do not."""
    seen: dict[tuple[str, str], tuple[Input, Score]] = {}
    notes = []
    for item in inputs:
        for score in (s for s in scores_of(item) if s.of == FLOOR and s.name != "class_accuracy"):
            other = seen.setdefault((score.name, score.protocol), (item, score))
            if other[1].value == score.value or other[0] is item:
                continue
            why = _why(other[1], score)
            notes.append(
                f"{score.name} of real pictures is {number(other[1].value)} in {label_of(other[0])} and "
                f"{number(score.value)} in {label_of(item)}: {why}. Compare a number with the floor of its own step."
            )
    return list(dict.fromkeys(notes))


def other_code(inputs: Sequence[Input]) -> list[str]:
    """A sentence where scores of one kind were made by different code; empty where all were made by the same."""
    told = []
    for kind in dict.fromkeys(item.kind for item in inputs):
        records = [Record.read(item.folder) for item in inputs if item.kind == kind]
        if changed := unlike_code(record.science_files for record in records if record is not None):
            names = ", ".join(changed[:4]) + (" ..." if len(changed) > 4 else "")
            told.append(f"Not to be compared: these {kind} were made by different code ({names}).")
    return told


def _why(one: Score, other: Score) -> str:
    if one.num_images != other.num_images:
        return f"they are of {one.num_images} and {other.num_images} pictures, and the score depends on the number"
    apart = differences(one.details, other.details)
    orders = [str(s.details.get("order") or (s.details.get("images") or {}).get("order") or "") for s in (one, other)]
    if orders[0] != orders[1] and all(orders):
        return f"not of the same pictures ({orders[0]}; {orders[1]})"
    return f"they were not measured alike ({'; '.join(apart[:2])})" if apart else "of other pictures"


def protocols(inputs: Sequence[Input]) -> list[Block]:
    """Each protocol once: its settings as first used, and where steps differ from that."""
    by_name: dict[str, Block] = {}
    for item in inputs:
        for score in scores_of(item):
            if not score.details:
                continue
            entry = by_name.setdefault(
                score.protocol,
                {"name": score.protocol, "rows": list(_flat(score.details).items()), "first": score, "differs": {}},
            )
            if apart := differences(entry["first"].details, score.details):
                entry["differs"].setdefault(label_of(item), "; ".join(apart[:6]))
    return list(by_name.values())


def _flat(value: Options, prefix: str = "") -> Block:
    flat: Block = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat
