#!/bin/bash
# A real Slurm cluster on this machine, for tests: lab.sh FOLDER N_NODES (started by lab.py).
#
# Runs as the first process of its own network, mount, UTS and PID namespaces, so that every daemon,
# address and mount ends with it. Each node is a network namespace with an Ethernet and an
# "InfiniBand" link to bridges on the login node:
#
#     login 10.77.0.1 ── br-eth ─┬─ node1 10.77.0.11 ─┬─ br-ib
#                                └─ node2 10.77.0.12 ─┘
#
# Environment: CPUS and GPUS a node has (declared, not real); ACCOUNTING=1: with slurmdbd and MariaDB,
# an account `team` and a QoS `debug`. FOLDER/small is a file system of 6 MB that all nodes see.
set -euo pipefail
folder=$1 n_nodes=$2 CPUS=${CPUS:-32} GPUS=${GPUS:-4} prefix=node
export SLURM_CONF=$folder/etc/slurm.conf
user=$(id -un) nodes="$prefix[1-$n_nodes]"
mkdir -p "$folder"/{etc,state,log,run,dev,bin}

network() {
    mount -t tmpfs tmpfs /run  # for `ip netns`
    hostname login
    ip link set lo up
    {
        echo "127.0.0.1 localhost"
        echo "10.77.0.1 login"
        for i in $(seq "$n_nodes"); do
            echo "10.77.0.$((10 + i)) $prefix$i"
            echo "10.78.0.$((10 + i)) $prefix$i-ib"
        done
    } > "$folder/etc/hosts"
    mount --bind "$folder/etc/hosts" /etc/hosts
    for kind in eth ib; do
        ip link add br-$kind type bridge
        ip link set br-$kind up
    done
    ip addr add 10.77.0.1/24 dev br-eth
    for i in $(seq "$n_nodes"); do
        ip netns add $prefix$i
        ip -n $prefix$i link set lo up
        subnet=77
        for kind in eth ib; do
            ip link add $kind$i type veth peer name ${kind}0 netns $prefix$i
            ip link set $kind$i master br-$kind up
            ip -n $prefix$i addr add 10.$subnet.0.$((10 + i))/24 dev ${kind}0
            ip -n $prefix$i link set ${kind}0 up
            subnet=78
        done
    done
}

gpus() {  # character devices, else Slurm sets no CUDA_VISIBLE_DEVICES
    local device=$folder/dev/nvidia
    for g in $(seq 0 $((GPUS - 1))); do
        mknod -m 666 "$device$g" c 1 3 2>/dev/null || device=/dev/tty  # without root: no mknod
    done
    printf 'AutoDetect=off\nNodeName=%s Name=gpu File=%s[0-%d]\n' "$nodes" "$device" $((GPUS - 1)) \
        > "$folder/etc/gres.conf"
}

configuration() {
    echo CgroupPlugin=cgroup/v1 > "$folder/etc/cgroup.conf"  # must exist; never used
    cat > "$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=login(10.77.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock,cred_expire=8
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/run/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
KillWait=15
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$nodes NodeAddr=10.77.0.[11-$((10 + n_nodes))] CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=16000 Gres=gpu:$GPUS State=UNKNOWN
PartitionName=normal Nodes=$nodes Default=YES MaxTime=24:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=urgent Nodes=$nodes MaxTime=24:00:00 PriorityTier=10 PreemptMode=OFF
CONF
}

munge() {
    dd if=/dev/urandom of="$folder/etc/munge.key" bs=1024 count=1 status=none
    chmod 400 "$folder/etc/munge.key"
    munged --force --key-file="$folder/etc/munge.key" --socket="$folder/run/munge.sock" \
        --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" \
        --seed-file="$folder/run/munge.seed" --num-threads=4
}

node() {  # node NAME: start its slurmd, now and again after a crash
    mkdir -p "$folder/run/$1"
    cat > "$folder/bin/start_$1" <<START
#!/bin/bash
exec ip netns exec $1 unshare --uts --mount bash -c \
    "hostname $1; mount --bind $folder/etc/hosts /etc/hosts; exec slurmd -N $1 -c"
START
    chmod +x "$folder/bin/start_$1"
    "$folder/bin/start_$1"
}

accounting() {  # what makes a wrong account or QoS an error
    cat >> "$SLURM_CONF" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass=$folder/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
CONF
    local maria="--no-defaults --user=$user --datadir=$folder/db"
    mariadb-install-db $maria --auth-root-authentication-method=normal --skip-test-db \
        > "$folder/log/mariadb-install.log" 2>&1
    mariadbd $maria --socket="$folder/run/mysql.sock" --pid-file="$folder/run/mariadb.pid" \
        --bind-address=127.0.0.1 --port=13306 --innodb-buffer-pool-size=64M \
        --innodb-flush-log-at-trx-commit=0 --skip-log-bin > "$folder/log/mariadb.log" 2>&1 &
    for _ in $(seq 100); do sql 'select 1' > /dev/null && break; sleep 0.1; done
    sql "create database slurm_acct_db"
    for host in 127.0.0.1 localhost; do
        sql "create user slurm@'$host' identified by 's'; grant all on slurm_acct_db.* to slurm@'$host'"
    done
    cat > "$folder/etc/slurmdbd.conf" <<CONF
DbdHost=login
DbdAddr=127.0.0.1
SlurmUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.sock
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=s
StorageLoc=slurm_acct_db
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.pid
CONF
    chmod 600 "$folder/etc/slurmdbd.conf"
    slurmdbd
    for _ in $(seq 100); do sacctmgr -n show cluster > /dev/null 2>&1 && break; sleep 0.1; done
    while read -r line; do
        sacctmgr -i $line >> "$folder/log/sacctmgr.log" 2>&1 || true
    done <<LINES
add cluster lab
add account team cluster=lab
add qos debug set priority=80 MaxWall=00:30:00 MaxTRESPerJob=node=2
add user $user account=team qos=normal,debug
modify user $user set qos=normal,debug
LINES
}

sql() {
    mariadb --no-defaults -uroot --socket="$folder/run/mysql.sock" -e "$1" 2> /dev/null
}

network
gpus
configuration
munge
mkdir "$folder/small"
mount -t tmpfs -o size=6m tmpfs "$folder/small"
if [ "${ACCOUNTING:-0}" = 1 ]; then accounting; fi
slurmctld -c
for i in $(seq "$n_nodes"); do node $prefix$i; done
for _ in $(seq 400); do
    [ "$(sinfo -h -p normal -o '%T %D' 2>/dev/null)" = "idle $n_nodes" ] && break
    sleep 0.05
done
sinfo -N
touch "$folder/ready"
exec sleep infinity
