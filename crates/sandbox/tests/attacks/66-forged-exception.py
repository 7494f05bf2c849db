# Raises an exception about a text with offsets far outside of it, whose words the test reads.
# problem: words
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
import os


def solve(n):
    text = (
        '{"call":1,"error":[["UnicodeDecodeError","UnicodeError","ValueError","Exception","BaseException","object"],'
        '{"t":["utf-8",{"b":"x"},-70368744177664,-70368744177663,"bad"]},"UnicodeDecodeError: bad",0]}'
    )
    os.write(5, len(text).to_bytes(4, "little") + text.encode())
    while True:
        os.read(4, 1)
