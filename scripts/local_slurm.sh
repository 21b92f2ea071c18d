#!/usr/bin/env bash
# A SLURM cluster of this machine alone, to try launcher=slurm on; nothing of it lies outside its folder.
#
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge    # once; as root, like the rest
#   scripts/local_slurm.sh start /tmp/slurm && export SLURM_CONF=/tmp/slurm/slurm.conf
#   scripts/local_slurm.sh stop /tmp/slurm
#
# Two nodes, each with all cores and two made-up GPUs, and two partitions: "low", whose jobs are queued again when one of
# "high" needs their place, ten seconds after SIGTERM.
set -euo pipefail

start() {
  for name in munged slurmctld slurmd; do
    command -v "$name" >/dev/null || { echo "$name is not installed: see the top of $0" >&2; exit 2; }
  done
  [ ! -e "$1/slurm.conf" ] || { echo "$1 has a cluster already: stop it, or name another folder" >&2; exit 2; }
  mkdir -p "$1/state" "$1/munge" "$1/node1" "$1/node2"
  folder=$(cd "$1" && pwd)
  chmod 755 "$folder" "$folder/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
  port=${PORT:-17817}
  cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_min_interval=1000000,requeue_delay=0
MinJobAge=300
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 1))-$((port + 2)) CPUs=$(nproc) RealMemory=$(free --mebi | awk '/^Mem/ { print $2 }') Gres=gpu:2
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF
CONF
  touch "$folder/made_up_gpu0" "$folder/made_up_gpu1"
  echo "Name=gpu File=$folder/made_up_gpu[0-1]" >"$folder/gres.conf"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld
  slurmd -N node1
  slurmd -N node2
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%D --states=idle --partition=low 2>/dev/null)" = 2 ] && return
    sleep 0.5
  done
  echo "the nodes did not come up: see the logs in $folder" >&2
  exit 1
}

stop() {
  for file in "$1/node1.pid" "$1/node2.pid" "$1/slurmctld.pid" "$1/munge/pid"; do
    if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}

case "${1:-} ${2:-}" in
  start\ ?*) start "$2" ;;
  stop\ ?*) stop "$2" ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
