"""``kafka-backup``, and ``python -m kafka_backup.cli``."""

import json
import os
import signal
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130


def run() -> None:
    """Load the commands, and run the one that was asked for.

    Loading takes half a second, more on a busy machine. Whoever stops the program meanwhile gets the answer that a
    session gives later, not a stack trace, or the exit code of a crash.
    """
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    from kafka_backup.cli.commands import main

    for number, handler in before.items():
        signal.signal(number, handler)
    main(prog_name="kafka-backup")


def _leave(_number: int, _frame: object) -> None:
    message = "stopped on request, before anything was begun"
    if "--json" in sys.argv:
        error = {"kind": "cancelled", "message": message}
        sys.stdout.write(json.dumps({"status": "interrupted", "error": error}) + "\n")
        sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    run()
