"""The part of a job script that runs on the host, outside any container, before and after the step's processes.

It requeues a job whose step has saved its state and wants to go on, also where the step's container has no SLURM
clients, and where SLURM itself would not do so (`PreemptMode=CANCEL`). It notes the end of a job that never came as far
as its step.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_SHELL = r"""
maskgit_job=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then maskgit_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
maskgit_life=${SLURM_ARRAY_TASK_ID:-0}-$MASKGIT_CHAIN_LINK-${SLURM_RESTART_COUNT:-0}
maskgit_seconds() {  # [days-]hours:minutes:seconds
    local days=0 clock=$1 total=0 part
    case $clock in *-*) days=${clock%%-*}; clock=${clock#*-};; esac
    for part in ${clock//:/ }; do total=$((total * 60 + 10#$part)); done
    echo $((total + 86400 * days))
}
maskgit_note() {  # exit code
    [ "$1" = 0 ] && return
    [ -e "$maskgit_notes/began/$maskgit_life" ] && return
    mkdir -p "$maskgit_notes/ends"
    printf '{"code": %d, "message": "the job script ended with exit code %d before the step began; see %s", ' \
        "$1" "$1" "$maskgit_notes" > "$maskgit_notes/ends/.script-$maskgit_life"
    printf '"job": "%s", "node": "%s", "rank": 0, "restart": %d, "began": %d, "time": %d}\n' "$maskgit_job" \
        "${SLURMD_NODENAME:-}" "${SLURM_RESTART_COUNT:-0}" "$maskgit_started" "$(date +%s)" \
        >> "$maskgit_notes/ends/.script-$maskgit_life"
    mv "$maskgit_notes/ends/.script-$maskgit_life" "$maskgit_notes/ends/${SLURM_ARRAY_TASK_ID:-0}.script.json"
}
maskgit_end() {  # exit code of the step's processes
    local code=$1 shown state preempted started ran limit try
    maskgit_note "$code"
    if [ -e "$maskgit_notes/continue/$maskgit_life" ]; then code=75; fi  # srun tells the code of whom it killed
    [ "$code" = 0 ] && return
    shown=$(scontrol show job "$maskgit_job" 2>/dev/null | tr ' ' '\n')
    state=$(sed -n 's/^JobState=//p' <<<"$shown")
    preempted=$(sed -n 's/^PreemptTime=//p' <<<"$shown")
    started=$(sed -n 's/^StartTime=//p' <<<"$shown")
    ran=$(sed -n 's/^RunTime=//p' <<<"$shown")
    limit=$(sed -n 's/^TimeLimit=//p' <<<"$shown")
    if [[ $preempted == 2* && ! $preempted < $started ]]; then
        touch "$maskgit_notes/preempted-$maskgit_life"  # a later life, or status, reads why this one ended
        case $code in 75 | 137 | 143) ;; *) exit "$code" ;; esac
    elif [ "$code" != 75 ]; then
        exit "$code"
    else
        case $state in
        RUNNING | SUSPENDED | STOPPED | SIGNALING | "") ;;
        TIMEOUT) ;;
        *) [[ $limit == [0-9]* ]] && [ "$(maskgit_seconds "$ran")" -ge "$(maskgit_seconds "$limit")" ] || {
            echo "cancelled: not requeued"
            exit 143
        } ;;
        esac
    fi
    [ "$maskgit_requeue" = scontrol ] || exit 75  # the next link of the chain starts because this one did not end well
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        scontrol requeue "$maskgit_job" && sleep 3600
        sleep 3
    done
    exit 75
}
trap : TERM USR2 INT  # the step's processes get their own; this shell must outlive them
trap 'maskgit_end $?' EXIT
maskgit_started=$(date +%s)
"""


def prologue(folder: Path, link: int, requeue: str) -> list[str]:
    """Shell lines for the beginning of a job script.

    Args:
        folder: the batch folder.
        link: place in a chain of jobs.
        requeue: "scontrol" or "chain".
    """
    return [
        f"maskgit_notes={shlex.quote(str(folder))} maskgit_requeue={requeue}",
        f"export MASKGIT_CHAIN_LINK={link}",
        *_SHELL.strip().splitlines(),
    ]
