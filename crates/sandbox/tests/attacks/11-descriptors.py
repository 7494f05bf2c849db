# Opens files until there is no descriptor left.
# a: file_limit
# b: file_limit
def solve(n):
    held = []
    while True:
        held.append(open("/dev/null"))
