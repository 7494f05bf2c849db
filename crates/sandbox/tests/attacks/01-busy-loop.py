# Loops without end.
# a: time_limit
# b: time_limit
def solve(n):
    while True:
        pass
