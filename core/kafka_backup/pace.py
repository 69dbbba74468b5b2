"""Work at a given rate at most."""

from __future__ import annotations

import threading
import time

from kafka_backup.progress import StopToken


class Pace:
    """Keeps any number of threads, all together, at or below a rate. There is no burst to make up for idle time."""

    def __init__(self, per_second: float, *, stop: StopToken) -> None:
        """Begin now.

        Args:
            per_second: the rate, in whatever `take` counts: bytes, records.
            stop: ends a wait with CancelledError.
        """
        self.per_second = per_second
        self._stop = stop
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, amount: int) -> None:
        """Note that `amount` has passed, and wait until the rate allows to go on."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + amount / self.per_second
            wait = self._free_at - time.monotonic()
        if wait > 0:
            self._stop.wait(wait)
