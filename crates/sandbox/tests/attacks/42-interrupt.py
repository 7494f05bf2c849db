# The other exceptions that no handler for exceptions catches.
# a: runtime_error
# b: runtime_error
def solve(n):
    raise (KeyboardInterrupt, GeneratorExit)[n % 2]
