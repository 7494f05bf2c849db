# Raises and handles exceptions, has an exit handler and a context manager.
import atexit
import contextlib

atexit.register(lambda: None)


@contextlib.contextmanager
def one():
    yield 1


def solve(n):
    try:
        raise ValueError(1)
    except ValueError as error:
        with one() as value:
            return n + error.args[0] * value
    finally:
        pass
