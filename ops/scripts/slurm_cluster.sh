#!/bin/bash
# A small real Slurm on this machine: munge, slurmctld, and two slurmd on loopback addresses, n1 (127.0.0.2) and
# n2 (127.0.0.3), each with two GPUs that are not there (device nodes that stand for them). For tests; as root; Debian.
#
#   slurm_cluster.sh install        apt-get the packages that are missing
#   slurm_cluster.sh up DIR         start, and wait until both nodes are idle; prints the export line
#   slurm_cluster.sh down DIR       stop everything that `up` started, and take back its line in /etc/hosts
set -euo pipefail

PACKAGES=(slurmctld slurmd slurm-client munge)
MARK='# maxent-grpo slurm test'

install() {
  local missing=()
  for package in "${PACKAGES[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  [[ ${#missing[@]} == 0 ]] && return
  echo "installing ${missing[*]}"
  apt-get update -qq
  # Debian's own services must not start: this script starts its own, on its own ports.
  local policy=/usr/sbin/policy-rc.d made=
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    made=yes
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  [[ -z $made ]] || rm $policy
}

up() {
  local dir=$1 host
  host=$(hostname -s)
  mkdir -p "$dir"/{spool/n1,spool/n2,state,log,munge,dev}
  chmod 755 "$dir" "$dir/munge"
  # Slurm counts a GPU by its device file, which must be a character device: null and zero stand in.
  [[ -e $dir/dev/nvidia0 ]] || mknod "$dir/dev/nvidia0" c 1 3
  [[ -e $dir/dev/nvidia1 ]] || mknod "$dir/dev/nvidia1" c 1 5
  head -c 1024 /dev/urandom >"$dir/munge/key"
  chown -R munge:munge "$dir/munge"
  chmod 400 "$dir/munge/key"
  echo "127.0.0.2 n1 $MARK"$'\n'"127.0.0.3 n2 $MARK" >>/etc/hosts
  su munge -s /bin/bash -c "munged --key-file=$dir/munge/key --socket=$dir/munge/socket \
    --pid-file=$dir/munge/pid --log-file=$dir/munge/log --seed-file=$dir/munge/seed --num-threads=2"
  echo "NodeName=n[1-2] Name=gpu Type=fake File=$dir/dev/nvidia[0-1]" >"$dir/gres.conf"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=maxent
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=requeue_delay=1
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=10
MinJobAge=6000
FirstJobId=$((10000 + RANDOM))
SlurmdParameters=config_overrides
GresTypes=gpu
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:fake:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  local deadline=$((SECONDS + 60))
  until [[ $(sinfo -h -o %D -t idle 2>/dev/null) == 2 ]]; do
    if ((SECONDS > deadline)); then
      echo "Slurm's nodes are not idle after 60 s; logs:" >&2
      tail -n 20 "$dir"/log/*.log >&2
      return 1
    fi
    sleep 0.25
  done
  echo "export SLURM_CONF=$SLURM_CONF"
}

stop() { # one daemon by its own pid file
  local pid
  [[ -f $1 ]] || return 0
  pid=$(<"$1")
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 40); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.25
  done
  kill -KILL "$pid" 2>/dev/null || true
}

down() {
  local dir=$1
  SLURM_CONF=$dir/slurm.conf timeout 10 scancel --user=root >/dev/null 2>&1 || true
  for name in slurmd.n1 slurmd.n2 slurmctld munge/pid; do
    stop "$dir/${name%.pid}$([[ $name == munge/pid ]] || echo .pid)"
  done
  grep -v "$MARK" /etc/hosts >"$dir/hosts" || true
  cat "$dir/hosts" >/etc/hosts # in a container the file cannot be replaced, only rewritten
}

case ${1:-} in
  install) install ;;
  up | down) "$1" "$(mkdir -p "${2:?a directory}" && cd "$2" && pwd)" ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
