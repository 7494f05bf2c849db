# Source that overflows a parser.
# a: runtime_error memory_limit
# b: runtime_error memory_limit
def solve(n):
    return eval("(" * 100000 + "1" + ")" * 100000)
