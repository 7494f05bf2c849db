# Fills the disk with files below the limit of one file.
# a: file_limit
# b: runtime_error
def solve(n):
    for index in range(1000):
        with open("/tmp/%d" % index, "wb") as file:
            file.write(b"x" * (1 << 20))
    return n + 1
