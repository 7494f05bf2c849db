#!/bin/bash
# node.sh NUMBER: the first process of a node's namespaces.
set -euo pipefail
node=n$1
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /var/spool
hostname "$node"
ip link set lo up
for ((left = 100; left > 0; left--)); do
    ip link show eth0 >/dev/null 2>&1 && break
    sleep 0.05
done
ip addr add "10.99.0.$(($1 + 1))/24" dev eth0
ip link set eth0 up
mkdir "/var/spool/slurmd-$node"
# As many GPUs as slurm.conf says, for those who count them.
for gpu in {0..7}; do
    mknod -m 666 "/var/spool/gpu$gpu" c 1 3
done
/opt/sluice/tests/slurm/munge.sh
# slurmd stays in front; what is left over by jobs is reaped by this shell.
slurmd -D -N "$node" &
wait "$!"
