# Calls itself by its name.
def solve(n):
    if n > 50:
        return solve(n - 1) + 1
    return n + 1
