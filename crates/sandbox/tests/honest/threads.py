# Uses threads and a lock.
import threading


def solve(n):
    total, lock = [0], threading.Lock()

    def add():
        with lock:
            total[0] += 1

    threads = [threading.Thread(target=add) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return n + total[0] // 40
