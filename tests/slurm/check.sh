#!/bin/bash
# Takes a run through a Slurm cluster of four nodes on this machine: submitted, with more actors, an actor's node lost,
# preempted, queued again, and finished, with nothing lost. `make test-slurm` calls it.
#
# The nodes are namespaces (processes, mounts, network, host name) over this machine's own file system, which is only read:
# what they write lies in memory and goes with them. Slurm is the packages of this machine's distribution.
#
#   SLUICE_BIN             folder of the programs (target/release, else target/debug)
#   SLUICE_SLURM_CACHE     folder that the packages are kept in (target/slurm)
#   SLUICE_SLURM_SECONDS   after so many seconds everything is ended, and the test has failed (900)
#   SLUICE_SLURM_PARTS     parts of the scenario (all): disturbed, one_node, gpus
#   SLUICE_WITHOUT_SLURM   1: a machine that cannot do it skips it instead of failing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)

cannot() {
    if [ "${SLUICE_WITHOUT_SLURM:-}" = 1 ]; then
        echo "skipped: a Slurm cluster cannot be made here: $*"
        exit 0
    fi
    echo "a Slurm cluster cannot be made here: $* (SLUICE_WITHOUT_SLURM=1 skips this test)" >&2
    exit 1
}

# --- What it needs ------------------------------------------------------------------------------------------------

[ "$(id -u)" -eq 0 ] || cannot "root is needed for namespaces and mounts"
for tool in unshare nsenter pivot_root ip mount apt-get dpkg timeout python3 useradd setpriv; do
    command -v "$tool" >/dev/null || cannot "$tool is missing"
done
grep -qw overlay /proc/filesystems || cannot "the kernel has no overlay file system"
unshare -m -p -f -n -u -i --kill-child true 2>/dev/null || cannot "namespaces are not allowed"

binaries=${SLUICE_BIN:-}
for folder in "$repository/target/release" "$repository/target/debug"; do
    [ -n "$binaries" ] || ! [ -x "$folder/sluice" ] || binaries=$folder
done
for program in sluice sluice-compute sluice-coordinator sluice-reward-server sluice-learner sluice-actor; do
    [ -x "$binaries/$program" ] || { echo "there is no $program in '${binaries:-target}': cargo build --workspace --bins" >&2; exit 1; }
done
libtorch=${LIBTORCH:-$repository/.deps/python/torch}
[ -e "$libtorch/lib/libtorch_cpu.so" ] || { echo "there is no libtorch in $libtorch: setup/install.sh, or LIBTORCH" >&2; exit 1; }

# --- Slurm's packages ---------------------------------------------------------------------------------------------

. /etc/os-release
cache=$(realpath -m "${SLUICE_SLURM_CACHE:-$repository/target/slurm}")/$ID-${VERSION_ID:-rolling}-$(dpkg --print-architecture)
if ! [ -e "$cache/complete" ]; then
    echo "fetching Slurm's packages into $cache"
    mkdir -p "$cache/lists/partial" "$cache/packages/partial"
    private_apt() {
        timeout 300 apt-get -qq -o Debug::NoLocking=1 -o Dir::State::Lists="$cache/lists" -o Dir::Cache::Archives="$cache/packages" \
            -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@" 2>&1
    }
    private_apt update >"$cache/log" || cannot "the package lists cannot be read: $(tail -n 1 "$cache/log")"
    private_apt --yes --no-install-recommends --download-only install slurmctld slurmd slurm-client munge >"$cache/log" ||
        cannot "Slurm's packages cannot be fetched: $(tail -n 1 "$cache/log")"
    rm -rf "$cache/lists"
    touch "$cache/complete"
fi

# --- The cluster, which ends with its first process ----------------------------------------------------------------

results=$repository/target/slurm/last
rm -rf "$results"
mkdir -p "$results"
work=$(mktemp -d)
trap 'rmdir "$work"' EXIT
status=0
timeout --foreground --signal=KILL "${SLUICE_SLURM_SECONDS:-900}" \
    unshare -m -p -f -n -u -i --kill-child "$here/cluster.sh" "$here" "$work" "$binaries" "$libtorch" "$cache/packages" "$results" || status=$?
case $status in
0) echo "ok: see bench/RESULTS.md for what the times mean" ;;
137) echo "FAILED: not done after ${SLUICE_SLURM_SECONDS:-900} s; logs in $results" >&2 ;;
*) echo "FAILED; logs in $results" >&2 ;;
esac
exit "$status"
