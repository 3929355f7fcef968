"""Tells somebody that a step failed or a run ended: a command, or a message to a web hook. Never in the way of work.

`notify.command` is a shell line that gets the message on its standard input and the parts as MASKGIT_* variables.
`notify.webhook` names the environment variable that holds the address (which is a secret, and therefore stands in no
config); it gets a POST of JSON, whose `text` Slack, Mattermost and Teams show.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.config.settings import without_password
from experiments.monitoring import queue
from experiments.monitoring.failures import failure_of
from experiments.store.documents import Launch
from experiments.store.records import PipelineRecord, PipelineStep
from experiments.store.step_folder import status
from maskgit_core.errors import MaskgitError

TIMEOUT_S = 30.0
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|WEBHOOK|NOTIFY_URL", re.IGNORECASE)
_SECRET_TEXTS = re.compile(
    r"(?i)\b(?:hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|(?<=bearer )\S+"
    r"|(?<=token=)[^\s&]+|(?<=password=)[^\s&]+|(?<=api_key=)[^\s&]+)"
)
_BAD = ("failed", "killed", "stopped", "cancelled", "blocked")


def is_wanted(settings: Mapping[str, Any]) -> bool:
    """True where a config's `notify` block names a command or a web hook."""
    block = settings.get("notify") or {}
    return bool(block.get("command") or block.get("webhook"))


def ended(folder: str, code: int) -> None:
    """Called once a step has ended for good, well or not, by whoever ran it; never raises.

    Args:
        folder: the step's.
        code: how its process ended (`launchers.calls`).
    """
    try:
        place = Path(folder)
        launch = Launch.read(place)
        store = place.parent.parent
        record = PipelineRecord.of(store, launch.pipeline) if launch else None
        if record is None or launch is None or not is_wanted(record.settings):
            return
        entry = next((e for e in record.steps if store / e.folder == place), None)
        if code not in (0, 75, 130, 143) and entry is not None and record.settings["notify"].get("each_failure", True):
            step_failed(record, entry, store)
        if (counts := outcome(record, store)) is not None and first_to_tell(store, record.uid):
            run_ended(record, counts)
    except Exception as error:  # whatever it is, it is not the step's
        print(f"warning: notify: {error}", file=sys.stderr, flush=True)


def step_failed(record: PipelineRecord, entry: PipelineStep, store: Path) -> None:
    """One message with the failure's line."""
    failure = failure_of(entry, store)
    where = f" on {failure.node}" if failure.node else ""
    job = f" (job {failure.job})" if failure.job else ""
    text = f"{record.experiment}: step {entry.name} failed{where}{job}: {failure.reason}: {failure.line}"
    send(record.settings["notify"], text, event="failed", experiment=record.experiment, run=record.uid,
         step=entry.name, line=failure.line)  # fmt: skip


def run_ended(record: PipelineRecord, counts: Mapping[str, int]) -> None:
    """One message with the number of steps in each state."""
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    word = "is done" if not any(counts.get(state) for state in _BAD) else "has ended"
    send(record.settings["notify"], f"{record.experiment} {word}: {told} ({record.uid})", event="ended",
         experiment=record.experiment, run=record.uid, step="", line=told)  # fmt: skip


def outcome(record: PipelineRecord, store: Path) -> dict[str, int] | None:
    """Steps by state once every step of a run has ended or can never begin; None before."""
    states: dict[str, str] = {}
    for entry in record.steps:
        folder = store / entry.folder
        state = status(folder, queue.job_alive(), brief=True).state
        if state == "done":
            states[entry.fingerprint] = "done"
        elif any(states.get(need) in _BAD for need in entry.needs):
            states[entry.fingerprint] = "blocked"
        elif queue.is_final(folder, store) and state in ("running", "waiting"):
            states[entry.fingerprint] = "killed"
        elif state in _BAD and (queue.is_final(folder, store) or queue.live_entry(folder) is None):
            states[entry.fingerprint] = state
        else:
            return None
    return dict(Counter(states.values()))


def first_to_tell(store: Path, uid: str) -> bool:
    """True for the one process that is to tell that a run has ended."""
    try:
        (store / "pipelines" / f"{uid}.told").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def send(block: Mapping[str, Any], text: str, **parts: str) -> None:
    """Runs the command and posts to the web hook; what goes wrong is a warning."""
    text, parts = masked(text), {key: masked(value) for key, value in parts.items()}
    if command := block.get("command"):
        variables = {f"MASKGIT_{key.upper()}": value for key, value in {**parts, "text": text}.items()}
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", str(command)],
                input=text + "\n",
                text=True,
                timeout=TIMEOUT_S,
                env={**os.environ, **variables},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            if done.returncode:
                said = f"exit code {done.returncode}: {masked(done.stderr.strip())[-200:]}"
                print(f"warning: notify.command: {said}", file=sys.stderr, flush=True)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"warning: notify.command: {masked(str(error))[:200]}", file=sys.stderr, flush=True)
    if name := block.get("webhook"):
        _post(str(name), {"text": text, **parts})


def _post(variable: str, message: Mapping[str, str]) -> None:
    address = os.environ.get(variable, "")
    if not address.startswith(("http://", "https://")):
        print(f"warning: notify.webhook: {variable} holds no http(s) address here", file=sys.stderr, flush=True)
        return
    request = urllib.request.Request(
        address, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
    except Exception as error:  # its text may hold the address
        print(f"warning: notify.webhook: {variable}: {type(error).__name__}", file=sys.stderr, flush=True)


def masked(text: str) -> str:
    """`text` without values of environment variables that hold secrets, passwords in addresses and known tokens."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return _SECRET_TEXTS.sub("***", without_password(text))


def told_locally(record_uid: str, store: Path, failed: list[str]) -> None:
    """After a launch on this machine: a message for each failed step (fingerprints), and one for the end."""
    with suppress(MaskgitError):
        record = PipelineRecord.of(store, record_uid)
        if record is None or not is_wanted(record.settings):
            return
        for fingerprint in failed if record.settings["notify"].get("each_failure", True) else ():
            step_failed(record, record.by_fingerprint[fingerprint], store)
        if (counts := outcome(record, store)) is not None and first_to_tell(store, record.uid):
            run_ended(record, counts)
