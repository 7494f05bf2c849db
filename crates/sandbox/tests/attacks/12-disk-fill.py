# Fills the disk with one file.
# a: file_limit
# b: runtime_error
def solve(n):
    with open("/tmp/big", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))
