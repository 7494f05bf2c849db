# Has a block for when it is run as a program.
def solve(n):
    return n + 1


if __name__ == "__main__":
    print(input())
