"""Which steps are still wanted: those of every execution that nobody dropped, and what they were made from.

An execution is dropped by moving its record to `pipelines/dropped/`. Roots are the records that are left, the links of
experiments (stores of earlier releases have no record of adopted steps) and adopted steps. Roots that cannot be read
are an error: nothing is unreached only because a disk did not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from experiments.store.documents import Manifest, Request
from experiments.store.records import PipelineRecord, pipelines, records
from experiments.store.step_folder import Store
from maskgit_core.errors import ArtifactError, unknown_name
from maskgit_core.files import explain

DROPPED = "dropped"


def reachable(store: Store) -> set[Path]:
    """Folders (resolved) of all wanted steps.

    Raises:
        ArtifactError: a root cannot be read; names it and the remedy.
    """
    root = store.root
    _refuse_damaged(root)
    roots = [root / step.folder for record in records(root) for step in record.steps]
    roots += [link.resolve() for link in _links(root)]
    roots += [folder for folder in store.steps() if _is_adopted(folder)]
    if not roots and not _names(root / "pipelines" / DROPPED) and store.steps():
        raise ArtifactError(
            f"{root / 'pipelines'}: records no execution, so every step would count as unreached; restore the records, "
            "or delete folders of steps by hand"
        )
    return _closure(root, roots)


def _closure(root: Path, roots: Iterable[Path]) -> set[Path]:
    todo = [folder.resolve() for folder in roots]
    reached: set[Path] = set()
    while todo:
        folder = todo.pop()
        if folder in reached:
            continue
        reached.add(folder)
        request = Request.read(folder)
        todo += [(root / source.folder).resolve() for source in (request.sources if request else ())]
    return reached


def _is_adopted(folder: Path) -> bool:
    manifest = Manifest.read(folder)
    return manifest is not None and manifest.adopted_from is not None and not (folder / DROPPED).exists()


def _refuse_damaged(root: Path) -> None:
    """Records set aside as damaged may be roots; so may those in folders that cannot be listed."""
    for name in _names(root / "pipelines"):
        if name.endswith(".damaged"):
            uid = name.partition(".")[0]
            raise ArtifactError(
                f"{root / 'pipelines' / name}: the record of a run is damaged, so its steps are not known; restore it, "
                f"run its command again, or give it up with maskgit gc --drop {uid}"
            )


def _links(root: Path) -> list[Path]:
    place = root / "experiments"
    links = []
    for experiment in _names(place):
        if (place / experiment).is_dir():
            paths = [place / experiment / name for name in _names(place / experiment)]
            links += [path for path in paths if path.is_symlink() and path.exists()]
    return links


def _names(folder: Path) -> list[str]:
    """Names in a folder; an absent one is empty, an unreadable one an error."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be listed ({error.strerror}), so the wanted steps are not known; nothing was done"
        ) from error


def drop(store: Store, text: str) -> list[str]:
    """Gives up executions (a run's uid, or all of an experiment) or one adopted step; returns what was given up.

    Raises:
        ConfigError: nothing has this name.
    """
    known = records(store.root)
    chosen = [record.uid for record in known if text in (record.uid, record.experiment)]
    damaged = [n for n in _names(store.root / "pipelines") if n.endswith(".damaged") and n.partition(".")[0] == text]
    adopted = [f for f in store.steps() if _is_adopted(f) and text in (f.name, f"{f.parent.name}/{f.name}", str(f))]
    if not (chosen or damaged or adopted):
        names = {name for record in known for name in (record.uid, record.experiment)}
        raise unknown_name("--drop", text, names, "run or experiment")
    place = store.root / "pipelines" / DROPPED
    try:
        place.mkdir(exist_ok=True)
        for name in [*damaged, *(PipelineRecord.path(store.root, uid).name for uid in chosen)]:
            os.replace(store.root / "pipelines" / name, place / name)
        for folder in adopted:
            (folder / DROPPED).touch()
    except OSError as error:
        raise explain(error, place) from error
    _remove_links(store, {r.experiment for r in known if r.uid in chosen})
    return [*chosen, *damaged, *(str(f.relative_to(store.root)) for f in adopted)]


def _remove_links(store: Store, experiments: Iterable[str]) -> None:
    """Removes an experiment's links to steps that no execution wants any more."""
    kept = [store.root / step.folder for path in pipelines(store.root) if (r := PipelineRecord.load(path)) is not None
            for step in r.steps]  # fmt: skip
    wanted = {folder.resolve() for folder in kept}
    for experiment in experiments:
        place = store.root / "experiments" / experiment
        for name in _names(place):
            if (place / name).is_symlink() and (place / name).resolve() not in wanted:
                (place / name).unlink(missing_ok=True)
