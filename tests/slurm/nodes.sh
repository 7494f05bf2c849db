#!/bin/bash
# nodes.sh on|off NUMBER: switches a node of the cluster on or off.
set -euo pipefail
node=n$2

# Waits up to ten seconds until a command succeeds.
until_true() {
    local left
    for ((left = 200; left > 0; left--)); do
        "$@" && return
        sleep 0.05
    done
    echo "nodes.sh $node: not within 10 s: $*" >&2
    return 1
}
has_first() { first=$(pgrep -P "$(<"/run/$node.unshare")") && [ -n "$first" ]; }
has_network() { [ "$(readlink "/proc/$first/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
is_gone() { ! ip link show "v$2" >/dev/null 2>&1; }

case $1 in
on)
    setsid unshare -m -p -f -n -u -i --kill-child /opt/sluice/tests/slurm/node.sh "$2" >>"/results/$node.log" 2>&1 </dev/null &
    echo "$!" >"/run/$node.unshare"
    until_true has_first
    until_true has_network
    ip link add "v$2" type veth peer name eth0 netns "$first"
    ip link set "v$2" master br0 up
    ;;
off)
    # As when the power fails: nobody is told, and nothing is written any more.
    kill -KILL "$(<"/run/$node.unshare")"
    until_true is_gone "$@" || ip link delete "v$2"
    ;;
esac
