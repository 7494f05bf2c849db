# Prints without end.
# a: output_limit
# b: output_limit
def solve(n):
    while True:
        print("y" * 1000)
