"""What OpenAI's harness would say: `check(entry_point)` in the response's own interpreter, which is fine for honest programs.

Reads lines {"program": ..., "timeout": ...} from stdin, writes `true` or `false` for each, and `late` where its time was over.
"""

import json
import os
import signal
import sys

for line in sys.stdin:
    item = json.loads(line)
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        # Processor time; on the wall twenty times that, because others may use the processor.
        signal.setitimer(signal.ITIMER_PROF, item["timeout"])
        signal.alarm(20 * item["timeout"])
        try:
            exec(item["program"], {})
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    is_late = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
    print("late" if is_late else "true" if status == 0 else "false", flush=True)
