"""The command line in processes that start at once: forked from one that has imported everything already.

To start Python and to import the engine takes a second of a core, and a test that kills a process at a hundred points
starts two hundred.
"""

import multiprocessing
import os
import pkgutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import kafka_backup
from tests.support import mortal

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = [found.name for found in pkgutil.walk_packages(kafka_backup.__path__, "kafka_backup.")]
_CONTEXT.set_forkserver_preload(
    [
        "__main__",
        "rich.progress",
        "tests.support.mortal",
        # To import this one is to run the command.
        *(name for name in _MODULES if name != "kafka_backup.cli.__main__"),
    ]
)
_LOCK = threading.Lock()
"""The one who asks how a process ended takes the answer away, and whoever starts a process asks about all of them."""


def _work(point: str | None, arguments: Sequence[str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    mortal.run(point, arguments)


class Forked:
    """`kafka-backup ARGUMENT...` as a process of its own, which is gone at the end of a `with` block.

    Args:
        arguments: Of the command.
        point: Where it kills itself; see `tests.support.mortal`.
    """

    def __init__(self, *arguments: str, point: str | None = None) -> None:
        descriptor, name = tempfile.mkstemp(prefix="kafka-backup-output-")
        os.close(descriptor)
        self._output = Path(name)
        self._process = _CONTEXT.Process(target=_work, args=(point, arguments, name), daemon=True)
        with _LOCK:
            self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.exit_code is None:
            self.kill()
            self.wait(60)
        self._output.unlink()

    @property
    def exit_code(self) -> int | None:
        """How it ended, below zero by a signal; None while it runs."""
        with _LOCK:
            return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text()

    def kill(self) -> None:
        """With SIGKILL."""
        self._process.kill()

    def wait(self, seconds: float) -> int | None:
        """Waits for its end, and returns its exit code; None if it still runs."""
        end = time.monotonic() + seconds
        while (code := self.exit_code) is None and time.monotonic() < end:
            time.sleep(0.01)
        return code
