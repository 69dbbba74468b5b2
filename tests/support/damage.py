"""Damage that is damage for certain."""

from pathlib import Path


def damage(path: Path, at: int = -1) -> None:
    """Flips a bit of the byte `at`; a constant in its place could be the byte that stands there already."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
