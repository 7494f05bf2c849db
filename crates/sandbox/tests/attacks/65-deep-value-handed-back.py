# Returns lists nested as deep as allowed, which the test puts into one more and hands back.
# problem: twice
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
def solve(n):
    value = []
    for _ in range(895):
        value = [value]
    return value
