#!/bin/bash
# cluster.sh HERE WORK BINARIES LIBTORCH PACKAGES RESULTS: the first process of the cluster's namespaces, called by check.sh. When
# it ends the kernel ends all others and forgets the mounts.
set -euo pipefail
here=$1 work=$2 binaries=$3 libtorch=$4 packages=$5 results=$6
trap 'exit 130' INT TERM

# --- A root that is this machine's, with what is written kept in memory ----------------------------------------------

mount --make-rprivate /
mount -t tmpfs -o size=4g,mode=755 tmpfs "$work"
root=$work/root
mkdir "$root" "$work/upper" "$work/work" "$work/results"
mount --bind "$results" "$work/results"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
mkdir -p "$root/share" "$root/results"
bound() {
    mkdir -p "$root/opt/sluice/$2"
    mount --bind "$1" "$root/opt/sluice/$2"
    mount -o remount,bind,ro "$root/opt/sluice/$2"
}
bound "$binaries" bin
# Its libraries find others beside its folder.
bound "$(dirname "$libtorch")" python
ln -s "python/$(basename "$libtorch")/lib" "$root/opt/sluice/lib"
bound "$here" tests/slurm
bound "$here/../../examples" examples
bound "$packages" packages
mount --bind "$work/results" "$root/results"
mount -t tmpfs -o mode=755 tmpfs "$root/share"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys" 2>/dev/null || mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
cd "$root"
pivot_root . .
umount -l .
cd /
tests=/opt/sluice/tests/slurm

# Services are started below, not by their packages.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
if ls /opt/sluice/packages/*.deb >/dev/null 2>&1; then
    DEBIAN_FRONTEND=noninteractive dpkg --force-confnew --install /opt/sluice/packages/*.deb >/results/dpkg.log 2>&1
fi
useradd --create-home --shell /bin/bash researcher
install -d -o researcher -g researcher /share/researcher

# --- Slurm's configuration --------------------------------------------------------------------------------------------

hostname login
ip link set lo up
ip link add br0 type bridge
ip addr add 10.99.0.254/24 dev br0
ip link set br0 up
printf '127.0.0.1 localhost\n10.99.0.254 login\n10.99.0.1 n0\n10.99.0.2 n1\n10.99.0.3 n2\n10.99.0.4 n3\n' >/etc/hosts
mkdir -p /etc/slurm /var/spool/slurmctld /var/log/munge /var/lib/munge /etc/munge
rm -rf /etc/slurm/* /var/spool/slurmctld/*
cp "$tests/slurm.conf" /etc/slurm/
echo 'Name=gpu File=/var/spool/gpu[0-7]' >/etc/slurm/gres.conf
# Nothing is confined; releases before 23 have no word for it, and take version 1 without looking at it.
case $(slurmd -V) in
*\ 2[0-2].*) echo 'CgroupPlugin=cgroup/v1' ;;
*) echo 'CgroupPlugin=disabled' ;;
esac >/etc/slurm/cgroup.conf
head -c 32 /dev/urandom >/etc/munge/munge.key
chown -R munge:munge /etc/munge /var/log/munge /var/lib/munge
chmod 400 /etc/munge/munge.key
chmod 700 /etc/munge /var/log/munge /var/lib/munge

"$tests/munge.sh"
slurmctld -L /results/slurmctld.log

# --- The nodes ----------------------------------------------------------------------------------------------------------

for number in 0 1 2 3; do
    "$tests/nodes.sh" on "$number"
done
status=0
python3 -u "$tests/scenario.py" ${SLUICE_SLURM_PARTS:-} || status=$?
scontrol show job >/results/jobs 2>&1 || true
cp -r /share/researcher/runs /share/researcher/*-slurm /results/ 2>/dev/null || true
chmod -R a+rX /results
exit "$status"
