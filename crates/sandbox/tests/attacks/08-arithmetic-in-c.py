# One bytecode instruction that runs for years; Python handles no signal meanwhile.
# a: time_limit
# b: time_limit
def solve(n):
    return 9**9**9
