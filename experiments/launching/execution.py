"""Executes a request on any launcher: plan, checks, step folders, launch, progress on the terminal, final report."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from experiments.config.checker import StepRequest
from experiments.console import coloured
from experiments.launching.calls import calls
from experiments.launching.ending import hint, next_commands, report
from experiments.launching.notify import told_locally
from experiments.launching.prepare import keep_wanted, mend, prepare, resolved
from experiments.launching.submission import launch_context, plan, recover, restricted, submission_lock, to_submit
from experiments.launching.telling import Teller, Voice
from experiments.planning.graph import Graph, store_of
from experiments.planning.plan import PlannedStep
from experiments.planning.plan_table import print_plan
from experiments.store.records import PipelineRecord, new_uid
from experiments.store.step_folder import Store
from experiments.tracking.live import announce
from launchers.calls import Call, LauncherProtocol, Outcome
from maskgit_core.errors import ArtifactError, MaskgitError


def fetch_weights(name: str) -> None:
    """Downloads published weights that are not on this machine, after showing their licence; paths are passed over."""
    from maskgit_core.weights.download import fetch_missing

    fetch_missing([name], lambda line: print(line, flush=True))


def start(
    graph: Graph,
    launcher: LauncherProtocol,
    *,
    redo: Collection[str] = (),
    only: Collection[str] | None = None,
    reuse_old_code: bool = False,
    voice: Voice = "normal",
) -> int:
    """Plans, prepares and launches what is missing; returns the exit code once all has ended, or been submitted.

    Args:
        redo: names of steps to run again although they are done.
        only: fingerprints; nothing else is run but what these need. None: the whole graph.
        reuse_old_code: see `Planner`.
        voice: quiet says how it ended alone, verbose also what every step prints.

    Raises:
        MaskgitError: it cannot be done; nothing runs or stays in a queue.
    """
    store = store_of(graph)
    with one_at_a_time(store) if launcher.is_detached else nullcontext():
        for line in mend(graph, store):
            print(coloured(f"warning: {line}", "yellow"), file=sys.stderr)
        whole = plan(graph, redo, with_queue=launcher.is_detached, reuse_old_code=reuse_old_code)
        planned = restricted(whole, only)
        missing = [s for s in planned if s.action != "done" and s.node.maker is None]
        chosen = to_submit(planned) if launcher.is_detached else missing
        if voice != "quiet" and not (chosen and launcher.is_detached):
            print_plan(planned)
        if not chosen:
            keep_wanted(graph, planned, store)
            _say_nothing_runs(graph, store, is_done=not missing)
            return 0
        if voice != "quiet" and not launcher.is_detached and (said := hint(store.root, graph.experiment)):
            print(coloured(said, "dim"))
        uid, keys = new_uid(), {step.node.fingerprint for step in chosen}
        todo = calls(graph, planned, uid, chosen=keys, cut=launcher.is_detached)
        store.check_writable()
        launcher.check(todo)
        check_datasets(planned)
        set_aside(planned)
        prepare(graph, planned, store, uid=uid)
        _make_log_folders(chosen)
        context = launch_context(graph, planned, keys, store, uid) if launcher.is_detached else None
        if not launcher.is_detached:
            announce(store.root, uid)
        teller = Teller({s.node.fingerprint: s.node.name for s in planned}, launcher.echoes, voice)
        try:
            with teller.shown(), put_back(planned, submitted=launcher.is_detached):
                outcomes = launcher.launch(todo, on_event=teller, context=context)
        except MaskgitError:
            PipelineRecord.path(store.root, uid).unlink(missing_ok=True)  # nothing of it runs or ever will
            raise
    if launcher.is_detached:
        announce(store.root, uid)
        print_plan(planned, jobs={key: outcomes[key].jobs for key in keys})
        _report_submission(graph, len(chosen), uid)
        return 0
    return _end(graph, store, uid, todo, outcomes)


def _make_log_folders(chosen: Sequence[PlannedStep]) -> None:
    for step in chosen:
        (step.node.folder / "logs").mkdir(parents=True, exist_ok=True)


def _say_nothing_runs(graph: Graph, store: Store, *, is_done: bool) -> None:
    if not is_done:
        print("nothing to submit: everything is done, running or queued")
        return
    print("nothing to do: every step is done and was not run again")
    next_commands(graph, store.root)


def _end(graph: Graph, store: Store, uid: str, todo: Sequence[Call], outcomes: Mapping[str, Outcome]) -> int:
    """Prints results, ships them and says what to type next; returns the exit code."""
    code = report(todo, outcomes)
    told_locally(uid, store.root, [call.key for call in todo if outcomes[call.key].state == "failed"])
    Shipper(store.root, graph).ship()
    if code in (0, 1):
        with suppress(OSError, ArtifactError):  # a failing disk has been told of
            next_commands(graph, store.root, [call.name for call in todo if outcomes[call.key].state == "failed"])
    return code


@contextmanager
def one_at_a_time(store: Store) -> Iterator[None]:
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


@contextmanager
def put_back(planned: Sequence[PlannedStep], *, submitted: bool) -> Iterator[None]:
    """Afterwards gives steps that were to be made again and were never begun (a stop, a failure above) their results
    back; what was submitted is begun later."""
    from experiments.store.step_folder import reinstate

    is_launched = False
    try:
        yield
        is_launched = submitted
    finally:
        for step in planned:
            if not is_launched and step.again and step.status.manifest is not None:
                reinstate(step.node.folder)


def check_datasets(planned: Sequence[PlannedStep]) -> None:
    """Looks at the pictures of every dataset and folder of samples that a step reads, before anything is started.

    Raises:
        DataError: unreadable pictures, named and counted.
    """
    from experiments.config.specs import DatasetSpec
    from maskgit_core.content import resolve
    from maskgit_core.images.image_sets import check_sizes

    seen = set()
    for step in planned:
        request = step.node.request
        if step.action != "done" and (samples := request.content.get("samples")) is not None:
            check_sizes(resolve(samples))
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


def _splits(request: StepRequest) -> list[dict[str, object]]:
    """The splits that a step reads of its dataset, where its stage and not the dataset chooses them."""
    config = request.config
    if request.module == "experiments.stages.evaluate":
        names = ["test_split", *(["train_split"] if config["classifier_steps"] else [])]
        return [{"split": config[name]} for name in names]
    if request.module in ("experiments.stages.reference_statistics", "experiments.stages.eval_tokenizer"):
        if request.content.get("statistics") is None:
            return [{"split": config["split"]}]
        return []
    return [{}]


class Shipper:
    """Forwards journals to MLflow after the run (embedded store) or leaves that to the jobs (tracking server)."""

    def __init__(self, store: Path, graph: Graph) -> None:
        self._store = store
        self._tracking = graph.settings["tracking"]

    def ship(self) -> None:
        """Ships what is new; a failure to do so never changes the run's outcome."""
        if not self._tracking["ship"]:
            return
        from experiments.tracking.mlflow_store import ship
        from experiments.tracking.windows import mirror

        def send_journals() -> None:
            for problem in ship(self._store, self._tracking["uri"]).problems:
                print(f"warning: {problem}", file=sys.stderr)

        for send in (send_journals, lambda: mirror(self._store)):
            try:
                send()
            except MaskgitError as error:
                safe = f"the numbers are safe in {self._store}; maskgit sync ships them"
                print(f"warning: {error} ({safe})", file=sys.stderr)
