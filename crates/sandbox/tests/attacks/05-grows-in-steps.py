# Grows by a megabyte at a time.
# a: memory_limit
# b: memory_limit
def solve(n):
    held = []
    while True:
        held.append(b"x" * (1 << 20))
