# Prints a lot, within the limit.
def solve(n):
    for _ in range(100):
        print("x" * 500)
    return n + 1
