# Text beyond ASCII in names, strings and output.
def größe(текст):
    return len(текст)


def solve(n):
    print("日本語 ✓ 😀")
    return n + größe("é") + (ord("😀") > 0xFFFF) - 1
