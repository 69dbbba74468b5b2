"""Memory that is used again: fresh memory costs the kernel three times as much as reading a file into it."""

from __future__ import annotations

_ROUND_BYTES = 64 << 10
_MOST = 4


class Buffers:
    """Lends buffers. Nobody gives one back: it is lent again once no view of it is left. For one thread."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def view(self, size: int) -> memoryview:
        """Return a view of `size` bytes, whatever is in them."""
        for buffer in self._buffers:
            if len(buffer) >= size and _is_free(buffer):
                return memoryview(buffer)[:size]
        buffer = bytearray(-(-size // _ROUND_BYTES) * _ROUND_BYTES)
        self._buffers = [buffer, *self._buffers[: _MOST - 1]]
        return memoryview(buffer)[:size]


def _is_free(buffer: bytearray) -> bool:
    try:
        buffer.append(0)  # refused while there is a view
    except BufferError:
        return False
    buffer.pop()
    return True
