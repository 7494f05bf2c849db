# Uses a thread pool.
from concurrent.futures import ThreadPoolExecutor


def solve(n):
    with ThreadPoolExecutor(4) as pool:
        return n + sum(pool.map(lambda x: x, [0, 1, 0]))
