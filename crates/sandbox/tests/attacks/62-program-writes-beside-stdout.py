# A program that writes its answer where nobody compares.
# problem: program
# a: wrong_answer
# b: wrong_answer
import os
import sys

sys.stderr.write("3\n")
for fd in range(3, 10):
    try:
        os.write(fd, b"3\n")
    except OSError:
        pass
os._exit(0)
