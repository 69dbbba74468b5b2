"""How Dagster's Terminate reaches a blocking call of the engine."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from kafka_backup.progress import StopToken

SLICE_SECONDS = 0.2
GRACE_SECONDS = 20.0
"""How long an interrupted call may take to stop; Kubernetes kills a pod 30 s after it asked."""

_T = TypeVar("_T")


def run_interruptibly(work: Callable[["StopToken"], _T], *, on_slice: Callable[[], None] | None = None) -> _T:
    """Run `work` in a thread and wait for it so that this thread can be interrupted.

    Dagster raises its interrupt in the main thread, between two bytecodes, so the main thread must
    never wait inside the engine. When it comes, `work` is asked to stop and given `GRACE_SECONDS`;
    then the interrupt goes on, and the run is CANCELED.

    Args:
        work: the blocking call; it must end soon after its stop token says so.
        on_slice: called in this thread each `SLICE_SECONDS`, and at the end, to report progress.

    Raises:
        BaseException: whatever `work` raises, or the interrupt.
    """
    from kafka_backup.progress import StopToken

    stop = StopToken()
    outcome: Future[_T] = Future()

    def body() -> None:
        try:
            outcome.set_result(work(stop))
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread, which raises it
            outcome.set_exception(error)

    thread = threading.Thread(target=body, name="kafka-backup", daemon=True)
    thread.start()
    try:
        has_ended = False
        while not has_ended:
            has_ended = bool(wait([outcome], timeout=SLICE_SECONDS).done)
            if on_slice is not None:
                on_slice()
    finally:
        stop.stop()
        thread.join(GRACE_SECONDS)
    return outcome.result()
