# The same with a copy returned.
# problem: sort
# a: wrong_answer
# b: wrong_answer
def solve(items):
    items[:] = [0]
    return [0]
