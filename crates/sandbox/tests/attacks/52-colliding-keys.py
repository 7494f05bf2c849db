# Answers with a set whose members all have the same hash, to keep the reader busy.
# a: wrong_answer time_limit wall_limit output_limit
# b: wrong_answer time_limit wall_limit output_limit
def solve(n):
    modulus = (1 << 61) - 1
    return {index * modulus for index in range(1, 2000)}
