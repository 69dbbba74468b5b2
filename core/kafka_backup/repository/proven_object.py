"""Read an object twice, in little memory: first to prove the whole of it, then to use it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import crc32c

from kafka_backup.errors import DamagedError
from kafka_backup.repository.store import ObjectReader

PIECE_BYTES = 2 << 20
"""Bytes that are read at once."""


def digest(reader: ObjectReader) -> tuple[str, Sequence[int]]:
    """Read an object once; return its SHA-256 and the CRC-32C of each of its pieces."""
    sha256 = hashlib.sha256()
    checksums = array("I")
    buffer = memoryview(bytearray(min(PIECE_BYTES, reader.size)))
    for start in range(0, reader.size, PIECE_BYTES):
        piece = buffer[: reader.size - start]
        count = reader.read_into(piece, start)
        sha256.update(piece[:count])
        checksums.append(crc32c.crc32c(piece[:count]))
    return sha256.hexdigest(), checksums


class ProvenObject:
    """The bytes of an object from its start on, each piece with the checksum that `digest` found."""

    def __init__(self, reader: ObjectReader, checksums: Sequence[int]) -> None:
        self._reader = reader
        self._checksums = checksums
        self._next = 0
        self._buffer = memoryview(bytearray(min(PIECE_BYTES, reader.size)))

    def read(self, _size: int = -1) -> bytes:
        """Return the next piece, empty at the end."""
        left = self._reader.size - self._next * PIECE_BYTES
        piece = self._buffer[: max(0, min(PIECE_BYTES, left))]
        self.fill(piece)
        return bytes(piece)

    def fill(self, buffer: memoryview) -> None:
        """Fill a buffer that has room for whole pieces, or for all that is left.

        Raises:
            DamagedError: a piece is not what it was when the object was proved.
        """
        for start in range(0, len(buffer), PIECE_BYTES):
            piece = buffer[start : start + PIECE_BYTES]
            position = self._next * PIECE_BYTES
            count = self._reader.read_into(piece, position)
            if count != len(piece) or crc32c.crc32c(piece) != self._checksums[self._next]:
                raise DamagedError(
                    f"its bytes from {position} on are not those that were read a moment ago: they were changed, or "
                    "its storage is failing"
                )
            self._next += 1
