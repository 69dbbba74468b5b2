"""A rate that any number of threads keep together."""

from __future__ import annotations

import threading
import time

import pytest

from kafka_backup.errors import CancelledError
from kafka_backup.pace import Pace
from kafka_backup.progress import StopToken


def test_threads_together_are_not_faster_than_the_rate() -> None:
    """What: four threads pass 400 units at 1,000 a second.

    Why: the cap is there so that a first capture does not starve producers.
    Risk: each thread keeps the rate for itself, and all together a multiple of it.
    """
    pace = Pace(1000, stop=StopToken())
    began = time.monotonic()
    threads = [threading.Thread(target=lambda: [pace.take(10) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 0.4


def test_idle_time_is_not_made_up_for() -> None:
    """What: nothing passes for a while, then much at once.

    Why: a burst after a pause is what producers feel.
    Risk: a capture that waited for a leader catches up at full speed.
    """
    pace = Pace(1000, stop=StopToken())
    pace.take(1)
    time.sleep(0.2)
    began = time.monotonic()
    pace.take(100)
    assert time.monotonic() - began >= 0.1


def test_a_stop_ends_the_wait() -> None:
    """What: a stop while hours of waiting are due.

    Why: Ctrl-C must work at one byte per second too.
    Risk: a process that must be killed.
    """
    stop = StopToken()
    pace = Pace(1, stop=stop)
    threading.Timer(0.1, stop.stop).start()
    with pytest.raises(CancelledError):
        pace.take(100_000)
