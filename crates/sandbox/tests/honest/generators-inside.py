# Generators, comprehensions, closures, walrus.
def solve(n):
    squares = (x * x for x in range(10))
    return n + (total := sum(1 for _ in squares)) - total + 1
