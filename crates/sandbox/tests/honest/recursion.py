# Recurses to the default limit's neighbourhood.
def down(n):
    return 0 if n == 0 else 1 + down(n - 1)


def solve(n):
    return n + down(900) - 899
