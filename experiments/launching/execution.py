"""Executes a request on any launcher: plan, checks, step folders, launch, progress on the terminal, final report."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from experiments.config.checker import StepRequest
from experiments.console import coloured, duration, number
from experiments.launching.calls import calls
from experiments.launching.prepare import mend, prepare, resolved
from experiments.launching.submission import launch_context, plan, recover, restricted, submission_lock, to_submit
from experiments.planning.graph import Graph, store_of
from experiments.planning.plan import PlannedStep
from experiments.planning.plan_table import print_plan
from experiments.store.records import PipelineRecord, new_uid
from experiments.store.step_folder import Store
from experiments.tracking.live import announce
from launchers.calls import Call, Event, LauncherProtocol, Outcome
from maskgit_core.errors import MaskgitError


def fetch_weights(name: str) -> None:
    """Downloads published weights that are not on this machine, after showing their licence; paths are passed over."""
    from maskgit_core.weights.download import fetch_missing

    fetch_missing([name], lambda line: print(line, flush=True))


def start(graph: Graph, launcher: LauncherProtocol, *, redo: Collection[str] = (), only: Collection[str] | None = None,
          reuse_old_code: bool = False) -> int:  # fmt: skip
    """Plans, prepares and launches whatever is missing; returns the exit code.

    Inline and local launches are reported when all has ended, launches into a queue when all is submitted.

    Args:
        redo: names of steps to run again although they are done.
        only: fingerprints; nothing else is run but what these need. None: the whole graph.
        reuse_old_code: see `Planner`.

    Raises:
        MaskgitError: it cannot be done; nothing runs or stays in a queue.
    """
    store = store_of(graph)
    with _one_at_a_time(store) if launcher.is_detached else nullcontext():
        for line in mend(graph, store):
            print(coloured(f"warning: {line}", "yellow"), file=sys.stderr)
        planned = plan(graph, redo, with_queue=launcher.is_detached, reuse_old_code=reuse_old_code)
        planned = restricted(planned, only)
        missing = [s for s in planned if s.action != "done" and s.node.maker is None]
        chosen = to_submit(planned) if launcher.is_detached else missing
        if not chosen or not launcher.is_detached:
            print_plan(planned)
        if not chosen:
            queued = "nothing to submit: everything is done, running or queued"
            print(queued if missing else "nothing to do: every step is done and was not run again")
            return 0
        uid, keys = new_uid(), {step.node.fingerprint for step in chosen}
        todo = calls(graph, planned, uid, chosen=keys, cut=launcher.is_detached)
        store.check_writable()
        launcher.check(todo)
        check_datasets(planned)
        set_aside(planned)
        prepare(graph, planned, store, uid=uid)
        for step in chosen:
            (step.node.folder / "logs").mkdir(parents=True, exist_ok=True)
        context = launch_context(graph, planned, keys, store, uid) if launcher.is_detached else None
        if not launcher.is_detached:
            announce(store.root, uid)
        shipper = _Shipper(store.root, graph)
        names = {s.node.fingerprint: s.node.name for s in planned}
        try:
            outcomes = launcher.launch(todo, on_event=_Teller(names), context=context)
        except MaskgitError:
            PipelineRecord.path(store.root, uid).unlink(missing_ok=True)  # nothing of it runs or ever will
            raise
    if launcher.is_detached:
        announce(store.root, uid)
        print_plan(planned, jobs={key: outcomes[key].jobs for key in keys})
        _report_submission(graph, len(chosen), uid)
        return 0
    code = report(todo, outcomes, echoed=launcher.echoes)
    shipper.ship()
    return code


@contextmanager
def _one_at_a_time(store: Store) -> Iterator[None]:
    """The store's submission lock, with what killed submissions left behind finished or undone."""
    store.check_writable()
    with submission_lock(store.root):
        recover(store.root)
        yield


def _report_submission(graph: Graph, count: int, uid: str) -> None:
    print(f"submitted {count} steps as run {uid}; follow them with: maskgit status {graph.experiment}")
    if (graph.settings.get("tracking") or {}).get("uri") is None:
        print("their numbers reach MLflow whenever you call: maskgit sync (or maskgit ui)")


def set_aside(planned: Sequence[PlannedStep]) -> None:
    """Takes the done mark from steps that `--redo` names; what they made is kept with its attempt."""
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import retire

    for step in planned:
        if step.again and step.status.manifest is not None:
            retire(step.node.folder, step.status.manifest)
        StepFolder(step.node.folder).cancelled.unlink(missing_ok=True)


def check_datasets(planned: Sequence[PlannedStep]) -> None:
    """Looks at the pictures of every data set that a step to run reads, before anything is started.

    Raises:
        DataError: unreadable pictures, named and counted.
    """
    from experiments.config.specs import DatasetSpec

    seen = set()
    for step in planned:
        request = step.node.request
        for name, value in request.config.items():
            roots = {k: v for k, v in request.content.items() if k.startswith(f"{name}.")}
            if step.action == "done" or not roots or not isinstance(value, Mapping):
                continue
            module = request.modules[name]
            if ".datasets." not in module:
                continue
            options = {k: v for k, v in value.items() if k != "name"}
            options |= {k.partition(".")[2]: resolved(v) for k, v in roots.items()}
            for split in _splits(request):
                if (key := repr((module, value, roots, split))) in seen:
                    continue
                seen.add(key)
                data = DatasetSpec(str(value["name"]), {**options, **split}, module).build()
                if hasattr(data, "check"):
                    data.check()


def _splits(request: StepRequest) -> list[dict[str, Any]]:
    """The splits that a step reads of its data set, where its stage and not the data set chooses them."""
    config = request.config
    if request.module == "experiments.stages.evaluate":
        names = ["test_split", *(["train_split"] if config["classifier_steps"] else [])]
        return [{"split": config[name]} for name in names]
    if request.module in ("experiments.stages.reference_statistics", "experiments.stages.eval_tokenizer"):
        if request.content.get("statistics") is None:
            return [{"split": config["split"]}]
        return []
    return [{}]


def report(todo: Sequence[Call], outcomes: Mapping[str, Outcome], echoed: bool = False) -> int:
    """Prints headline numbers, or for each failed step its name, its last lines and its log; returns the exit code."""
    from experiments.store.documents import Manifest

    code = 0
    for call in todo:
        outcome = outcomes[call.key]
        folder = Path(call.args[0])
        if outcome.state == "done":
            manifest = Manifest.read(folder)
            if manifest is not None and (head := manifest.headline):
                print(f"  {call.name}: {head.name} = {number(head.value)}")
        elif outcome.state == "failed":
            refused = _print_failure(call, outcome, echoed)
            code = 2 if refused and code != 1 else 1
        elif outcome.state == "stopped":
            code = code or 130
    blocked = [c.name for c in todo if outcomes[c.key].state == "blocked"]
    if blocked:
        print(f"not run, since something they need failed: {', '.join(blocked)}")
    if code == 130:
        print("stopped; run the same command to go on from what was saved")
    return code


def _print_failure(call: Call, outcome: Outcome, echoed: bool) -> bool:
    """Prints why a step failed; True where the request cannot be met and one line (perhaps echoed already) says so."""
    from experiments.store.step_folder import last_end

    lines = call.log.read_text(errors="replace").splitlines() if call.log.exists() else []
    told = [line for line in lines if line.startswith("error: ")]
    if "No space left" in outcome.message or (outcome.exit_code == 2 and not told):
        # The log itself could not be written.
        end = last_end(Path(call.args[0]))
        reason = (end and end.reason) or f"{call.log.parent}: the disk is full; free some space"
        told = [f"error: {reason}"]
    if told and (outcome.exit_code == 2 or "No space left" in outcome.message):
        if not (echoed and told[-1] in lines):
            print(f"{told[-1]} (step {call.name})", file=sys.stderr)
        return True
    print(coloured(f"step {call.name} failed: {outcome.message}", "red"), file=sys.stderr)
    for line in lines[-8:]:
        print(f"    {line}", file=sys.stderr)
    print(f"    log: {call.log}", file=sys.stderr)
    return False


def _reason(call: Call) -> str:
    """Why a call failed, in one line: what its step noted, or why it could not begin; empty where it could not say."""
    from experiments.store.documents import Refusal
    from experiments.store.step_folder import last_end

    try:
        folder = Path(call.args[0])
        end, refusal = last_end(folder), Refusal.read(folder)
    except (MaskgitError, IndexError):
        return ""
    told = end.reason if end is not None and end.state == "failed" else refusal.reason if refusal is not None else ""
    return " ".join(told.split())[:300]


class _Teller:
    """Prints what happens to steps as it happens."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._began = time.monotonic()

    def __call__(self, event: Event) -> None:
        colour = {"finished": "green", "failed": "red", "blocked": "yellow"}.get(event.kind)
        took = f" in {duration(event.seconds)}" if event.seconds else ""
        said = " ".join(self._names.get(word, word) for word in event.message.split())
        if event.kind == "failed" and (reason := _reason(event.call)):
            said = f"{said}: {reason}" if said else reason
        message = f": {said}" if said and event.kind != "finished" else ""
        at = duration(time.monotonic() - self._began)
        print(coloured(f"[{at:>6}] {event.call.name} {event.kind}{took}{message}", colour), flush=True)


class _Shipper:
    """Forwards journals to MLflow after the run (embedded store) or leaves that to the jobs (tracking server)."""

    def __init__(self, store: Path, graph: Graph) -> None:
        self._store = store
        self._tracking = graph.settings["tracking"]

    def ship(self) -> None:
        """Ships what is new; a failure to do so never changes the run's outcome."""
        if not self._tracking["ship"]:
            return
        from experiments.tracking.mlflow_store import ship

        try:
            ship(self._store, self._tracking["uri"])
        except MaskgitError as error:
            print(f"warning: {error} (the numbers are safe in {self._store}; maskgit sync ships them)", file=sys.stderr)
