"""Many attempts at the same time, for those that mostly wait."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Name = TypeVar("Name")


def try_all(names: Sequence[Name], attempt: Callable[[Name], None], *, at_once: int = 4) -> None:
    """Tries all, and fails with everything that went wrong, each under its name.

    Args:
        names: Of the attempts.
        attempt: Raises, or asserts what is not so.
        at_once: How many run at the same time.
    """

    def problem(name: Name) -> str | None:
        try:
            attempt(name)
        except Exception as error:  # noqa: BLE001 - told below, under its name
            return f"{name}: {type(error).__name__}: {error}"
        return None

    with ThreadPoolExecutor(at_once) as pool:
        wrong = [found for found in pool.map(problem, names) if found]
    assert not wrong, "\n".join(wrong)
