"""Run a command as a process of its own and take what the kernel accounts for it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STOPWATCH = str(Path(__file__).with_name("stopwatch.py"))
_TIMEOUT_SECONDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process from its start to its end, its children included.

    Attributes:
        wall: seconds.
        cpu: seconds of processor time, user and system.
        peak_memory: largest resident set of one of its processes, bytes.
        broker_cpu: seconds of processor time that the broker used meanwhile.
        stored: bytes that it left in a repository, if it made one.
    """

    wall: float
    cpu: float
    peak_memory: int
    broker_cpu: float = 0.0
    stored: int | None = None


class SideFailedError(RuntimeError):
    """A side did not do its work, so no figure of it counts."""


def run(command: Sequence[str]) -> tuple[Run, str]:
    """Run a command; returns its measures and what it printed.

    Raises:
        SideFailedError: it failed; with its last words.
    """
    with tempfile.NamedTemporaryFile() as measures:
        stopwatch = [sys.executable, "-S", "-E", _STOPWATCH, measures.name, *command]
        done = subprocess.run(stopwatch, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        if done.returncode:
            words = (done.stdout + done.stderr)[-3000:]
            raise SideFailedError(f"exit code {done.returncode} of {' '.join(command)}\n{words}")
        return Run(**json.loads(measures.read())), done.stdout
