"""Runs a command and writes what the kernel accounts for it as JSON to a file: `stopwatch.py FILE COMMAND...`.

A small process of its own, because a child's peak memory is never less than that of the process it was forked from.
"""

import json
import os
import sys
import time


def main() -> int:
    """Run the command; its exit code is ours."""
    began = time.monotonic()
    child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
    _, status, usage = os.wait4(child, 0)
    measures = {
        "wall": time.monotonic() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * 1024,
    }
    with open(sys.argv[1], "w") as file:
        json.dump(measures, file)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
