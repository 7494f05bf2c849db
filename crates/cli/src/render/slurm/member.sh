#!/bin/bash
# member.sh ROLE: a process of a role, as a task of a step. {{ origin }}
#
# Processes find each other through the ring's folder: `coordinator` says where the coordinator is, `addresses/` where
# the others listen, and `targets/` where Prometheus finds metrics.

set -uo pipefail
role=$1
# Exit code of an actor that has found no ring (EX_TEMPFAIL of sysexits.h).
NO_RING=75
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

# Whether the ring's job has left the queue, so that nobody queues it again.
ring_is_over() {
    local job said
    job=$(cat "$ring/ring-job" 2>/dev/null) && [ -n "$job" ] || return 1
    if said=$(squeue --noheader --jobs="$job" --format=%T 2>&1); then
        [ -z "$said" ]
    else
        [[ $said == *"Invalid job id"* ]]
    fi
}

# Waits for the coordinator, which may have come back elsewhere. An actor has a job of its own, which outlives the ring's: it
# waits while the ring is queued again, but holds its node no longer than that is likely to end soon.
find_coordinator() {
    local left=0 said=''
    [ "$role" != actor ] || left={{ wait_seconds }}
    while :; do
        [ -z "$leaving" ] || exit 0
        # The run is complete.
        [ ! -d {{ last_checkpoint }} ] || exit 0
        # One that drains would send an actor away at once.
        [ ! -s "$ring/coordinator" ] || { [ "$role" = actor ] && [ -e "$ring/draining" ]; } || break
        if [ $((left % 10)) -eq 0 ] && [ "$role" = actor ] && ring_is_over; then
            echo "the ring's job has ended: submitted again it submits actors too"
            exit 0
        fi
        if [ "$left" -le 0 ]; then
            echo "no ring runs: $ring/coordinator is missing; submit $rendered/ring.sbatch" >&2
            exit $NO_RING
        fi
        [ -n "$said" ] || echo "$name waits for $ring/coordinator"
        said=1
        left=$((left - 1))
        sleep 1
    done
    coordinator=$(<"$ring/coordinator")
}

case $role in
reward-server) name=reward-server-$SLURM_PROCID ;;
learner) name=learner-$SLURM_PROCID ;;
actor) name=actor-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}-${SLURM_ARRAY_TASK_ID:-0} ;;
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

# Slurm signals every process of a step: this one only notes it, for the job's script too, and its child drains.
leaving='' child=''
told=$ring/addresses/told.$name
trap 'leaving=1; : >"$told"' TERM INT

# Waits for the child, through signals that only run the trap; returns its exit code.
wait_for_child() {
    local status again
    wait "$child"
    status=$?
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        status=$?
    done
    if [ "$status" -gt 128 ]; then
        # The trap may have run just before the child ended: asked again, its own exit code comes.
        wait "$child" 2>/dev/null
        again=$?
        [ "$again" -eq 127 ] || status=$again
    fi
    return "$status"
}

# Whether the coordinator is no longer where the child was sent.
has_moved() { [ "$(cat "$ring/coordinator" 2>/dev/null)" != "$coordinator" ]; }

# The job of an actor outlives the ring's, and when the coordinator's node fails Slurm may queue its part of the ring again and
# leave the others running: who finds that the coordinator has gone leaves, and is started again by whoever has to.
watch_coordinator() {
    while sleep 2; do
        if has_moved && sleep 1 && has_moved; then
            echo "the coordinator is no longer at $coordinator" >&2
            kill -TERM "$child" 2>/dev/null
            # What an actor has not sent yet nobody waits for; told again it leaves at once.
            [ "$role" = actor ] && sleep 5 && kill -TERM "$child" 2>/dev/null
            return
        fi
    done
}

failures=0
while :; do
    find_coordinator
    [ "$name" = learner-0 ] || rm -f "$address_file"
    announce "$address_file" &
    announcer=$!
    now=(--set "coordinator=$coordinator")
    [ "$role" != learner ] || now+=(--set "rendezvous=$(rendezvous)")
    began=$SECONDS
    "sluice-$role" "${settings[@]}" "${now[@]}" &
    child=$!
    watch_coordinator &
    watcher=$!
    wait_for_child
    status=$?
    kill "$announcer" "$watcher" 2>/dev/null
    rm -f "$ring/targets/$name.json"
    [ "$role" = actor ] || ! has_moved || exit 0
    if [ "$role" = learner ]; then
        # The ranks live and die together, and ring.sbatch starts them again; but not where that is no use.
        [ "$status" -ne 2 ] && [ "$status" -ne 3 ] || echo "$status" >"$ring/addresses/learner.final"
        exit "$status"
    fi
    # 2 is bad input, 3 what would end in the same way again.
    if [ "$status" -eq 2 ] || [ "$status" -eq 3 ] || [ -n "$leaving" ]; then
        exit "$status"
    fi
    if [ "$status" -eq 0 ] || has_moved; then
        # The run is over, or the ring leaves and comes back. An actor sees which.
        [ "$role" = actor ] || exit 0
        sleep 2
        continue
    fi
    [ $((SECONDS - began)) -gt 300 ] && failures=0
    failures=$((failures + 1))
    [ "$failures" -le 6 ] || exit "$status"
    echo "$name ended with $status: starting it again" >&2
    sleep $((failures < 5 ? failures : 5))
done
