#!/usr/bin/env bash
# Installs what start.sh needs from the distribution (Debian or Ubuntu; about 60 MB; needs root).
set -euo pipefail
run() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
run apt-get update
run env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core
