"""Work that several threads share, watched by the thread that asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from kafka_backup.progress import StopToken

Work = Callable[[StopToken], Sequence["Work"]]
"""Something to be done by one thread; returns what is to be done next."""


def in_parallel(
    works: Sequence[Work], *, threads: int, stop: StopToken, tick: Callable[[], None] = lambda: None
) -> None:
    """Do all works, and those that come of them before the others; the first error stops all and is raised.

    This thread wakes every 0.2 s, so that a signal or an interrupt is seen, and calls `tick`.
    """
    waiting = deque(works)
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="restore") as pool:
        futures: set[Future[Sequence[Work]]] = set()
        try:
            while waiting or futures:
                while waiting and len(futures) < threads:
                    futures.add(pool.submit(waiting.popleft(), stop))
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                tick()
                for future in done:
                    waiting.extendleft(future.result())
                stop.check()
        except BaseException:
            stop.stop()
            for future in futures:
                future.cancel()
            raise
