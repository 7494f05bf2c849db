# Asks for a terabyte at once.
# a: memory_limit
# b: memory_limit
def solve(n):
    return len(bytearray(1 << 40))
