# A source line of ten megabytes.
# a: memory_limit time_limit runtime_error wrong_answer
# b: memory_limit time_limit runtime_error wrong_answer
def solve(n):
    return len(eval("[" + "1," * 5000000 + "]"))
