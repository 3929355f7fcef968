"""Carries a plan out: weights first, then the launcher, what is told meanwhile, and the report at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.console import coloured, duration, number


def fetch_weights(name: str) -> None:
    """Downloads published weights that are not on this machine, after showing their licence; paths are passed over."""
    from maskgit_core.weights.download import fetch_missing

    fetch_missing([name], lambda line: print(line, flush=True))


def _launch(graph: Any, planned: Sequence[Any], store: Any, launcher: Any) -> int:
    from experiments.launching.calls import calls
    from experiments.launching.prepare import prepare
    from experiments.tracking.live import announce

    set_aside(planned)
    uid = prepare(graph, planned, store)
    for step in (s for s in planned if s.node.maker is None and s.action != "done"):
        (step.node.folder / "logs").mkdir(parents=True, exist_ok=True)
    todo = calls(graph, planned, uid)
    announce(store.root, uid)
    shipper = _Shipper(store.root, graph)
    outcomes = launcher.launch(todo, on_event=_Teller({s.node.fingerprint: s for s in planned}))
    code = report(todo, outcomes, echoed=getattr(launcher, "echoes", False))
    shipper.ship()
    return code


def set_aside(planned: Sequence[Any]) -> None:
    """Takes the done mark from steps that `--redo` names; what they made is kept with its attempt."""
    from experiments.store.paths import StepFolder
    from experiments.store.step_folder import retire

    for step in planned:
        if step.action == "run" and StepFolder(step.node.folder).manifest.exists() and "--redo" in step.reason:
            retire(step.node.folder, step.status.manifest)
        (step.node.folder / "cancelled").unlink(missing_ok=True)


def check_datasets(planned: Sequence[Any]) -> None:
    """Looks at the pictures of every data set that a step to run reads, before anything is started.

    Raises:
        DataError: unreadable pictures, named and counted.
    """
    from experiments.config.specs import DatasetSpec
    from experiments.launching.prepare import resolved

    seen = set()
    for step in planned:
        request = step.node.request
        for name, value in request.config.items():
            roots = {k: v for k, v in request.content.items() if k.startswith(f"{name}.")}
            if step.action == "done" or not roots or not isinstance(value, Mapping):
                continue
            module = request.modules[name]
            if ".datasets." not in module or (key := repr((module, value, roots))) in seen:
                continue
            seen.add(key)
            options = {k: v for k, v in value.items() if k != "name"}
            options |= {k.partition(".")[2]: resolved(v) for k, v in roots.items()}
            data = DatasetSpec(str(value["name"]), options, module).build()
            if hasattr(data, "check"):
                data.check()


def report(todo: Sequence[Any], outcomes: Mapping[str, Any], echoed: bool = False) -> int:
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


def _print_failure(call: Any, outcome: Any, echoed: bool) -> bool:
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


class _Teller:
    """Prints what happens to steps as it happens."""

    def __init__(self, steps: Mapping[str, Any]) -> None:
        self._steps = steps
        self._began = time.monotonic()

    def __call__(self, event: Any) -> None:
        colour = {"finished": "green", "failed": "red", "blocked": "yellow"}.get(event.kind)
        took = f" in {duration(event.seconds)}" if event.seconds else ""
        said = " ".join(self._steps[w].node.name if w in self._steps else w for w in event.message.split())
        message = f": {said}" if said and event.kind != "finished" else ""
        at = duration(time.monotonic() - self._began)
        print(coloured(f"[{at:>6}] {event.call.name} {event.kind}{took}{message}", colour), flush=True)


class _Shipper:
    """Forwards journals to MLflow after the run (embedded store) or leaves that to the jobs (tracking server)."""

    def __init__(self, store: Path, graph: Any) -> None:
        self._store = store
        self._tracking = graph.settings["tracking"]

    def ship(self) -> None:
        """Ships what is new; a failure to do so never changes the run's outcome."""
        if not self._tracking["ship"]:
            return
        from experiments.tracking.mlflow_store import ship
        from maskgit_core.errors import MaskgitError

        try:
            ship(self._store, self._tracking["uri"])
        except MaskgitError as error:
            print(f"warning: {error} (the numbers are safe in {self._store}; maskgit sync ships them)", file=sys.stderr)
