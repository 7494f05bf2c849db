# Uses up the inodes.
# a: file_limit
# b: runtime_error
def solve(n):
    for index in range(1000000):
        open("/tmp/%d" % index, "w").close()
    return n + 1
