"""Waiting for conditions; a test never sleeps for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_for(
    condition: Callable[[], Result], timeout: float = 60, what: str = "", interval: float = 0.02
) -> Result:
    """Calls `condition` until it returns something true, and returns that.

    Args:
        condition: Called again and again. What it raises is not caught.
        timeout: Seconds.
        what: What is waited for, for the message when it does not come.
        interval: Seconds between two calls.

    Raises:
        TimeoutError: It did not become true in time; with the last value.
    """
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout:g} s still not: {what or condition} (last value: {value!r})")
        time.sleep(interval)
