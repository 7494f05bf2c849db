# Imports widely.
import array
import bisect
import calendar
import collections
import copy
import csv
import datetime
import decimal
import difflib
import enum
import fractions
import functools
import hashlib
import heapq
import io
import itertools
import json
import logging
import math
import operator
import os
import pickle
import pprint
import queue
import random
import re
import statistics
import string
import struct
import sys
import tempfile
import textwrap
import time
import typing
import unicodedata
import uuid
import zlib


def solve(n):
    assert math.isclose(statistics.mean([1, 2, 3]), 2)
    assert hashlib.sha256(b"x").hexdigest().startswith("2d7116")
    assert pickle.loads(pickle.dumps({1: (2,)})) == {1: (2,)}
    assert decimal.Decimal("0.1") + decimal.Decimal("0.2") == decimal.Decimal("0.3")
    assert random.randint(1, 1) == 1 and uuid.uuid4() != uuid.uuid4()
    assert datetime.date(2024, 2, 29).isoformat() == "2024-02-29"
    assert os.cpu_count() and sys.version_info and time.time() > 0
    logging.getLogger("x").warning("a warning")
    return n + 1
