# Reboots the machine.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).reboot(0)
    return n + 1
