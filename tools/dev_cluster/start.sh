#!/usr/bin/env bash
# Starts a throw-away, real SLURM (munged, mariadbd, slurmdbd, slurmctld and several slurmd) on this one machine:
# no systemd, nothing outside one folder, root not needed. The packages come from install.sh.
#
#     tools/dev_cluster/start.sh && . /tmp/maskgit-slurm/env.sh     # then sinfo, maskgit run ... launcher=dev_cluster
#     tools/dev_cluster/stop.sh
#
# Settings (environment): SLURM_TEST_ROOT=/tmp/maskgit-slurm (keep it short: sockets) NODES=4 CPUS=4 GPUS=4 MEM=64000
# OVERRIDES="PrivateData=jobs;JobRequeue=0;..." replaces or adds lines of slurm.conf (PartitionName=NAME by its name).
# GPU_TYPE=h100 PORT=16800 (also uses PORT+1, PORT+10 and up: one per node) ACCT=1 (0: no slurmdbd) PREFIX=127.0.1.
set -euo pipefail
R=${SLURM_TEST_ROOT:-/tmp/maskgit-slurm}
NODES=${NODES:-4} CPUS=${CPUS:-4} GPUS=${GPUS:-4} MEM=${MEM:-64000} GPU_TYPE=${GPU_TYPE:-h100} PORT=${PORT:-16800} ACCT=${ACCT:-1}
PREFIX=${PREFIX:-127.0.1.}          # node names ARE loopback addresses: connectable with no /etc/hosts edit
ME=$(id -un)
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
die() { echo "dev_cluster: $*" >&2; tail -n 20 "$R"/log/*.out "$R"/log/slurm*.log >&2 || true; exit 1; }
wait_for() { # seconds, what, command...
  local n=$(( $1 * 20 )) what=$2; shift 2
  while ! "$@" >/dev/null 2>&1; do n=$((n-1)); [ $n -gt 0 ] || die "timed out waiting for $what"; sleep 0.05; done; }
tcp() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

for tool in munged slurmctld slurmd sbatch; do
  command -v $tool >/dev/null || { echo "dev_cluster: $tool is not installed; run $here/install.sh" >&2; exit 2; }
done
if [ "$ACCT" = 1 ]; then command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null || {
  echo "dev_cluster: slurmdbd or mariadbd is not installed; run $here/install.sh, or set ACCT=0" >&2; exit 2; }; fi
[ -e "$R/run/slurmctld.pid" ] && die "already up in $R (stop it first)"
umask 022
mkdir -p "$R"/{run,log,state,spool,dev,db}
chmod 755 "$R"
P_CTLD=$PORT P_DBD=$((PORT+1)) P_D1=$((PORT+10)) P_DN=$((PORT+9+NODES))

# ---- fake GPUs: symlinks to a char device are enough for gres/gpu (no mknod, no root)
for ((i=0;i<GPUS;i++)); do ln -sf /dev/null "$R/dev/gpu$i"; done
if [ "$GPUS" -gt 0 ]; then echo "Name=gpu Type=$GPU_TYPE File=$R/dev/gpu[0-$((GPUS-1))]"; fi > "$R/gres.conf"

# ---- slurm.conf
sed -e "s#@R@#$R#g; s#@ME@#$ME#g; s#@P_CTLD@#$P_CTLD#g; s#@P_DBD@#$P_DBD#g" \
    -e "s#@NODES@#$PREFIX[1-$NODES]#g; s#@PORTS@#$P_D1-$P_DN#g; s#@CPUS@#$CPUS#g; s#@MEM@#$MEM#g" \
    -e "s#@GRES@#$([ "$GPUS" -gt 0 ] && echo "Gres=gpu:$GPU_TYPE:$GPUS")#g" "$here/slurm.conf.in" > "$R/slurm.conf"
[ "$ACCT" = 1 ] || sed -i '/^AccountingStorage/d' "$R/slurm.conf"
IFS=';' read -ra overrides <<< "${OVERRIDES:-}"
for line in "${overrides[@]}"; do
  key=${line%%=*}; [ "$key" = PartitionName ] && key=${line%% *}
  sed -i "/^$key[ =]/d; /^$key\$/d" "$R/slurm.conf"; echo "$line" >> "$R/slurm.conf"
done
sed -e "s#@R@#$R#g; s#@ME@#$ME#g; s#@P_DBD@#$P_DBD#g" "$here/slurmdbd.conf.in" > "$R/slurmdbd.conf"
chmod 600 "$R/slurmdbd.conf"
cat > "$R/env.sh" <<E
export SLURM_CONF=$R/slurm.conf SLURM_TEST_ROOT=$R
E
export SLURM_CONF=$R/slurm.conf MYSQL_UNIX_PORT=$R/run/mysql.sock
export SLURM_TEST_ROOT=$R

# ---- munge
[ -f "$R/munge.key" ] || { (umask 077; dd if=/dev/urandom of="$R/munge.key" bs=128 count=1 2>/dev/null); }
munged --num-threads=10 --key-file="$R/munge.key" --socket="$R/run/munge.sock" --pid-file="$R/run/munged.pid" \
       --log-file="$R/log/munged.log" --seed-file="$R/run/munge.seed" </dev/null >"$R/log/munged.out" 2>&1 || die munged

# ---- MariaDB + slurmdbd (private datadir, unix socket only, no grants)
if [ "$ACCT" = 1 ]; then
  DB=(--no-defaults --user="$ME" --datadir="$R/db" --lc-messages-dir=/usr/share/mysql --innodb-log-file-size=4M
      --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0
      --innodb-flush-method=nosync --innodb-lock-wait-timeout=900 --aria-log-file-size=8388608 --skip-log-bin)
  if [ ! -d "$R/db/mysql" ]; then
    { printf 'create database mysql;\nuse mysql;\n'
      cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_system_tables_data.sql
    } | mariadbd "${DB[@]}" --bootstrap > "$R/log/bootstrap.log" 2>&1 || die mariadb bootstrap
  fi
  setsid mariadbd "${DB[@]}" --skip-networking --skip-grant-tables --socket="$R/run/mysql.sock" \
     --pid-file="$R/run/mariadbd.pid" --performance-schema=0 </dev/null >"$R/log/mariadbd.log" 2>&1 &
  wait_for 30 mariadbd test -S "$R/run/mysql.sock"
  slurmdbd </dev/null >"$R/log/slurmdbd.out" 2>&1 || die slurmdbd
  wait_for 30 slurmdbd tcp "$P_DBD"
fi

# ---- slurmctld, slurmds
slurmctld -c </dev/null >"$R/log/slurmctld.out" 2>&1 || die slurmctld
wait_for 30 slurmctld tcp "$P_CTLD"      # a client that finds the port closed sleeps seconds before it tries again
for ((i=1;i<=NODES;i++)); do slurmd -N "$PREFIX$i" </dev/null >"$R/log/slurmd-$i.out" 2>&1 || die "slurmd $i"; done
all_idle() { [ "$(timeout 5 sinfo -h -p main -t idle -o %D)" = "$NODES" ] && [ -z "$(timeout 5 sinfo -h -p main -t no_respond -o %D | grep -v '^0')" ]; }
wait_for 60 "$NODES idle nodes" all_idle
echo "slurm up in $R: $(sinfo -h -p main -o '%D nodes %N, %c cpus, %G, %T')"
