# A thread ends the process with success while the function takes its time.
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
import os
import threading
import time


def solve(n):
    threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0))).start()
    time.sleep(0.2)
    return n
