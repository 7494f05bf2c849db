# A file of a terabyte that uses no space.
# a: file_limit
# b: runtime_error
def solve(n):
    with open("/tmp/sparse", "wb") as file:
        file.truncate(1 << 40)
    return n + 1
