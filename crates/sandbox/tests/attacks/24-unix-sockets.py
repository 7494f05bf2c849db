# Reaches for named and abstract sockets, also from a pair that needs no `socket` call.
# a: accepted
# b: accepted
import socket

ADDRESSES = ["\0abstract", "/var/run/docker.sock", "/run/systemd/journal/socket", "/dev/log", "/tmp/x"]


def solve(n):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        for address in ADDRESSES:
            for attempt in (
                lambda: a.sendto(b"x", address),
                lambda: a.sendmsg([b"x"], [], 0, address),
                lambda: a.connect(address),
                lambda: a.bind(address),
                lambda: a.listen(),
            ):
                try:
                    attempt()
                    return "reached %r" % address
                except PermissionError:
                    pass
        a.close(), b.close()
    return n + 1
