# The same in the text of an exception, which reaches logs.
# a: runtime_error
# b: runtime_error
def solve(n):
    raise ValueError("\x1b[2J\x00\u202e\ud800 owned \x07")
