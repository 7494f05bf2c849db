# Returns something that computes when it is looked at.
# problem: sort
# a: wrong_answer
# b: wrong_answer
def solve(items):
    def later():
        while True:
            yield 1

    return later()
