"""Varints as Kafka writes them: zigzag in records (``org.apache.kafka.common.utils.ByteUtils``).

Seven bits a byte, least significant first, the high bit set on all bytes but the last; the zigzag form
puts the sign in the lowest bit. 32-bit values take at most five bytes, 64-bit values ten. Forms longer than
need be are read, as Kafka reads them, and never written.
"""

from __future__ import annotations

from kafka_backup.errors import DamagedError
from kafka_backup.records import Buffer

INT32_BITS = 32
INT64_BITS = 64


def encode_varint(value: int) -> bytes:
    """Encodes a signed integer of at most 64 bits."""
    rest = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def read_varint(data: Buffer, position: int, bits: int = INT32_BITS) -> tuple[int, int]:
    """Decodes the varint at ``position``; returns the value and the position after it.

    Args:
        data: where it stands.
        position: its first byte.
        bits: width of the value, 32 or 64.

    Raises:
        DamagedError: cut off, longer than its type allows, or a value that its type cannot hold.
    """
    result = 0
    shift = 0
    size = len(data)
    while True:
        if position >= size:
            raise DamagedError(f"a number is cut off at byte {position}")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= bits:
            raise DamagedError(f"the number that ends at byte {position} is too long for {bits} bits")
    if result >> bits:
        raise DamagedError(f"the number that ends at byte {position} does not fit in {bits} bits")
    return (result >> 1) ^ -(result & 1), position


def read_unsigned_varint(data: Buffer, position: int) -> tuple[int, int]:
    """Decodes the UNSIGNED_VARINT of compact types (KIP-482) at ``position``; at most five bytes.

    Raises:
        DamagedError: cut off, or too long.
    """
    result = 0
    for shift in range(0, 35, 7):
        if position >= len(data):
            raise DamagedError(f"a number is cut off at byte {position}")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise DamagedError(f"the number that ends at byte {position} is too long")


def wrap_int64(value: int) -> int:
    """Brings a sum into 64 bits as Java's ``long`` does; deltas between far timestamps rely on it."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)
