# Nodes of the cluster, switched on and off like machines; sourced by cluster.sh and scenario.sh.

# switch_on NUMBER
switch_on() {
    local node=n$1 first
    rm -f "/run/$node.pid"
    setsid unshare -m -p -f -n -u -i --kill-child /opt/sluice/tests/node.sh "$1" >>"/results/$node.log" 2>&1 &
    echo "$!" >"/run/$node.unshare"
    for ((left = 100; left > 0; left--)); do
        first=$(pgrep -P "$(<"/run/$node.unshare")") && [ -n "$first" ] && break
        sleep 0.05
    done
    for ((left = 100; left > 0; left--)); do
        [ "$(readlink "/proc/$first/ns/net")" != "$(readlink /proc/self/ns/net)" ] && break
        sleep 0.05
    done
    ip link add "v$1" type veth peer name eth0 netns "$first"
    ip link set "v$1" master br0 up
}

# switch_off NUMBER: as when the power fails. Nobody is told, and nothing is written any more.
switch_off() {
    kill -KILL "$(<"/run/n$1.unshare")"
    for ((left = 100; left > 0; left--)); do
        ip link show "v$1" >/dev/null 2>&1 || break
        sleep 0.05
    done
    ip link delete "v$1" 2>/dev/null || true
}
