#!/usr/bin/env bash
# node.sh crash NODE     kill -9 its slurmd, its step daemons and everything they run, and tell slurmctld at once
# node.sh zombie NODE    kill -9 only the slurmd (job processes live on; slurmctld notices after ~25 s by itself)
# node.sh restore NODE   start slurmd again and resume the node
R=${SLURM_TEST_ROOT:-/tmp/maskgit-slurm}; export SLURM_CONF=$R/slurm.conf PATH=$PATH:/usr/sbin:/sbin
tree() { echo "$1"; local c; for c in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$c"; done; }
case $1 in
  crash|zombie)
    kill -9 "$(cat "$R/run/slurmd-$2.pid")"
    [ "$1" = zombie ] && exit
    for d in /proc/[0-9]*; do
      case "$(readlink "$d/exe" 2>/dev/null)" in */slurmstepd*) ;; *) continue;; esac
      ls -l "$d/fd" 2>/dev/null | grep -qF -e "$R/log/slurmd-$2.log" -e "$R/spool/$2/" && kill -9 $(tree "${d#/proc/}")
    done
    scontrol update nodename="$2" state=down reason=crash ;;
  restore)
    slurmd -N "$2" </dev/null >"$R/log/slurmd-$2.out" 2>&1
    for _ in $(seq 100); do
      scontrol update nodename="$2" state=resume 2>/dev/null
      [ "$(sinfo -h -n "$2" -o %T | sort -u)" = idle ] && exit 0; sleep 0.1
    done; exit 1 ;;
esac
