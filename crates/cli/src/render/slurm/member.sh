#!/bin/bash
# member.sh ROLE: a process of a role, as a task of a step. {{ origin }}
#
# Processes find each other through the ring's folder: `coordinator` says where the coordinator is, `addresses/` where
# the others listen, and `targets/` where Prometheus finds metrics.

set -uo pipefail
role=$1
rendered={{ folder }}
ring={{ ring }}

# The address under which other nodes reach this one: what its name stands for, unless that is loopback.
own_address() {
    local address
    while read -r address _; do
        case $address in 127.*) ;; *) echo "$address" && return ;; esac
    done < <(getent ahostsv4 "$(hostname)")
    for address in $(hostname -I); do
        case $address in *:*) ;; *) echo "$address" && return ;; esac
    done
    echo 127.0.0.1
}

# port_of WHAT FILE: the port of an address file.
port_of() { sed -n "s/.*\"$1\": \"[^\"]*:\([0-9]*\)\".*/\1/p" "$2"; }

# Tells Prometheus where the metrics are, once they are there.
announce() {
    local left
    for ((left = 3600; left > 0; left--)); do
        [ -s "$1" ] && break
        sleep 1
    done
    printf '[{"targets": ["%s:%s"], "labels": {"run": "{{ run }}", "component": "%s"}}]\n' \
        "$(hostname)" "$(port_of metrics "$1")" "$role" >"$ring/targets/$name.json"
}

# Where the coordinator is now: it may have come back elsewhere.
find_coordinator() {
    if ! [ -s "$ring/coordinator" ]; then
        echo "no ring runs: $ring/coordinator is missing; submit $rendered/ring.sbatch first" >&2
        return 1
    fi
    coordinator=$(<"$ring/coordinator")
}

case $role in
reward-server) name=reward-server-$SLURM_PROCID ;;
learner) name=learner-$SLURM_PROCID ;;
actor) name=actor-$SLURM_JOB_ID-$SLURM_PROCID ;;
*) echo "member.sh: there is no role $role to start" >&2 && exit 2 ;;
esac
address_file=$ring/addresses/$name.json

# What this process alone is told.
settings=(--config "$rendered/config/$role.toml" --set "service.address_file=$address_file")
case $role in
reward-server) settings+=(--set "member=$name" --set "listen=$(own_address):0") ;;
learner) settings+=(--set "rank=$SLURM_PROCID" --set "listen=$(own_address):0") ;;
actor) settings+=(--set "member=$name" --set "listen_weights=$(own_address):0") ;;
esac

# The ranks of the learner meet where rank 0 says that it listens.
rendezvous() {
    local left first=$ring/addresses/learner-0.json
    if [ "$SLURM_PROCID" -eq 0 ]; then
        echo "$(own_address):0"
        return
    fi
    for ((left = 600; left > 0; left--)); do
        [ -s "$first" ] && break
        sleep 1
    done
    sed -n 's/.*"rendezvous": "\([^"]*\)".*/\1/p' "$first"
}

# Slurm signals every process of a step: this one only notes it, and its child drains.
leaving=''
trap 'leaving=1' TERM INT
failures=0
while :; do
    find_coordinator || exit 1
    [ "$name" = learner-0 ] || rm -f "$address_file"
    announce "$address_file" &
    announcer=$!
    now=(--set "coordinator=$coordinator")
    [ "$role" != learner ] || now+=(--set "rendezvous=$(rendezvous)")
    began=$SECONDS
    "sluice-$role" "${settings[@]}" "${now[@]}"
    status=$?
    kill "$announcer" 2>/dev/null
    rm -f "$ring/targets/$name.json"
    if [ "$role" = learner ]; then
        # The ranks live and die together, and ring.sbatch starts them again; but not where that is no use.
        [ "$status" -ne 2 ] && [ "$status" -ne 3 ] || echo "$status" >"$ring/addresses/learner.final"
        exit "$status"
    fi
    [ $((SECONDS - began)) -gt 300 ] && failures=0
    failures=$((failures + 1))
    # 2 is bad input, 3 what would end in the same way again.
    if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq 3 ] || [ -n "$leaving" ] || [ "$failures" -gt 6 ]; then
        exit "$status"
    fi
    echo "$name ended with $status: starting it again" >&2
    sleep $((failures < 5 ? failures : 5))
done
