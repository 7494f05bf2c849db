"""Compares the answer in a response with a label, for the reward server's scorer of kind "math".

The answer is what the last \\boxed{} holds, else what stands behind the last ####, else the last expression that
math-verify finds. A label that math-verify cannot read is refused: no response is wrong because of it.
"""

import logging
import re
import signal
from contextlib import contextmanager
from decimal import Decimal

try:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(f"math-verify is missing ({error}): run setup/install.sh math, or install it for the "
                      "interpreter") from None

MARK = "####"
KINDS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
# Processor time for one label, or for one response and its comparison. math-verify's own time-outs count time on the
# wall, in which a busy host makes a right answer wrong.
SECONDS = 5
LARGEST_EXPONENT = 100
SPELLINGS = {
    "\u2212": "-", "\u2013": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "{,}": ",", "\\!": "", ",\\,": ",", "\\,": " ", "\\;": " ", "\\dfrac": "\\frac", "\\tfrac": "\\frac",
    "\u00d7": "\\times ", "\\fbox{": "\\boxed{",
}

# It warns that nothing bounds it; `bounded` does.
logging.getLogger("math_verify").setLevel(logging.ERROR)


class TooLong(BaseException):
    """Its processor time is used up. No `except Exception` on the way catches it."""


@contextmanager
def bounded():
    """Ends what is inside after SECONDS of processor time."""

    def end(*_):
        raise TooLong

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def answer_text(response):
    """What a response says once it has thought."""
    thoughts, end, rest = response.rpartition("</think>")
    return (rest if end else response).split("<think>")[0]


def normalised(text):
    """The same expressions, each sign in one spelling."""
    for spelling, sign in SPELLINGS.items():
        text = text.replace(spelling, sign)
    # Digits in groups behind thin spaces, and in pairs as in India.
    text = re.sub(r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?!\d)", lambda found: found[0].replace(" ", ""), text)
    text = re.sub(r"(?<![\d.])\d{1,2}(?:,\d{2})+,\d{3}(?!\d)", lambda found: found[0].replace(",", ""), text)
    text = re.sub(r"(\d+(?:\.\d+)?) *\\times *10\^(?:\{(-?\d+)\}|(-?\d+))", power_of_ten, text)
    # A sign that stands apart.
    return re.sub(r"(^|[(=$]|is )- (?=[\d\\.])", r"\1-", text)


def power_of_ten(found):
    exponent = int(found[2] or found[3])
    if abs(exponent) > LARGEST_EXPONENT:
        return found[0]
    return format(Decimal(found[1]).scaleb(exponent), "f")


def last_boxed(text):
    """What the last \\boxed{} holds, to the brace that closes it; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "}" and depth == 0:
            return text[begin:at]
        elif text[at] == "}":
            depth -= 1
    return None


def expressions(text):
    return parse(text, extraction_config=KINDS, fallback_mode="no_fallback", parsing_timeout=None)


def whole(text):
    """The expression that a text as a whole is."""
    text = text.strip().strip("$").strip()
    return expressions(f"\\boxed{{{text}}}") if text else []


def label_of(label):
    if isinstance(label, bool) or not isinstance(label, (str, int, float)):
        raise NotImplementedError(f"the label {label!r} is no text and no number")
    found = whole(normalised(str(label)).rsplit(MARK, 1)[-1])
    if not found:
        raise NotImplementedError(f"the label {label!r} is no expression that math-verify understands")
    return found


def answer_of(response):
    text = normalised(answer_text(response))
    boxed = last_boxed(text)
    if boxed is not None:
        return whole(boxed)
    if MARK not in text:
        return expressions(text)
    line = text.rsplit(MARK, 1)[1].strip().split("\n")[0]
    return whole(re.split(r"\.(?:\s|$)", line)[0])


def reward(prompt, response, label=None):
    if label is None:
        raise NotImplementedError("the prompt has no such field to compare with")
    try:
        with bounded():
            gold = label_of(label)
    except TooLong:
        raise NotImplementedError(f"the label {label!r} takes more than {SECONDS} s of processor time") from None
    try:
        with bounded():
            answer = answer_of(response)
            return float(bool(answer) and verify(gold, answer, timeout_seconds=None))
    except TooLong:
        return 0.0
