#!/usr/bin/env bash
# Stop the cluster started by start.sh (by pid file only) and, unless KEEP=1, delete its directory.
R=${SLURM_TEST_ROOT:-/tmp/maskgit-slurm}
[ -d "$R/run" ] || exit 0
export SLURM_CONF=$R/slurm.conf PATH=$PATH:/usr/sbin:/sbin
alive() { [ -r "/proc/$1/stat" ] && ! grep -q '^[0-9]* (.*) Z' "/proc/$1/stat" 2>/dev/null; }   # zombie == dead
stop() { # pid files: TERM all at once, wait <=5 s, then KILL
  local f p pids=()
  for f in "$@"; do [ -s "$f" ] && pids+=("$(cat "$f")"); done
  [ ${#pids[@]} -gt 0 ] || return 0
  kill "${pids[@]}" 2>/dev/null
  for _ in $(seq 100); do
    local any=0; for p in "${pids[@]}"; do alive "$p" && any=1; done
    [ $any = 0 ] && break; sleep 0.05
  done
  for p in "${pids[@]}"; do alive "$p" && kill -9 "$p"; done; rm -f "$@"
}
# 1. end running jobs, so that no slurmstepd/user process is left behind
if [ -s "$R/run/slurmctld.pid" ] && alive "$(cat "$R/run/slurmctld.pid")"; then
  timeout 5 scancel --me 2>/dev/null || timeout 5 scancel -u "$(id -un)" 2>/dev/null
  for _ in $(seq 40); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
fi
# 2. step daemons of THIS cluster that remain (e.g. of a killed slurmd), with their descendants:
#    recognised by an open file under $R/log or $R/spool
tree() { echo "$1"; local c; for c in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$c"; done; }
for d in /proc/[0-9]*; do
  case "$(readlink "$d/exe" 2>/dev/null)" in */slurmstepd*) ;; *) continue;; esac
  ls -l "$d/fd" 2>/dev/null | grep -qE "$R/(log|spool)/" && kill -9 $(tree "${d#/proc/}") 2>/dev/null
done
#    ... and srun processes pointed at this cluster by their environment (they wait minutes for a dead slurmctld)
for d in /proc/[0-9]*; do
  case "$(readlink "$d/exe" 2>/dev/null)" in */srun|*/srun-wlm) ;; *) continue;; esac
  grep -qzxF "SLURM_CONF=$R/slurm.conf" "$d/environ" 2>/dev/null && kill -9 "${d#/proc/}" 2>/dev/null
done
stop "$R"/run/slurmd-*.pid
stop "$R/run/slurmctld.pid"
stop "$R/run/slurmdbd.pid"
[ -s "$R/run/mariadbd.pid" ] && { p=$(cat "$R/run/mariadbd.pid"); [ "${KEEP:-0}" = 1 ] || kill -9 "$p" 2>/dev/null; stop "$R/run/mariadbd.pid"; }
stop "$R/run/munged.pid"
[ "${KEEP:-0}" = 1 ] || rm -rf "$R"
