"""What the records hold: the same on every call, so that all sides write and read the same."""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_CITIES = ("Aarhus", "Bergen", "Cordoba", "Dresden", "Esch", "Faro", "Ghent", "Haarlem")
_KINDS = ("order.created", "order.paid", "order.packed", "order.shipped", "order.returned")


def _random(source: random.Random) -> bytes:
    return source.randbytes(1024)


def _json(source: random.Random) -> bytes:
    """An order as a service sends it: about a third is noise, the rest recurs from record to record."""
    moment = f"{source.randint(0, 23):02d}:{source.randint(0, 59):02d}:{source.random() * 60:09.6f}"
    document = {
        "event_id": f"{source.getrandbits(128):032x}",
        "type": source.choice(_KINDS),
        "created_at": f"2026-03-{source.randint(1, 28):02d}T{moment}Z",
        "customer": {"id": source.randint(1, 5_000_000), "city": source.choice(_CITIES)},
        "items": [
            {
                "sku": f"SKU-{source.randint(0, 99999):05d}",
                "quantity": source.randint(1, 9),
                "unit_price": round(source.random() * 200, 2),
                "currency": "EUR",
            }
            for _ in range(3)
        ],
        "session": base64.b64encode(source.randbytes(60)).decode(),
        "note": "",
    }
    missing = 700 - len(json.dumps(document))
    document["note"] = ("leave it at the door " * 20)[:missing]
    return json.dumps(document).encode()


def _small(source: random.Random) -> bytes:
    """A reading of a sensor: half of its 100 bytes are digits that change."""
    values = ",".join(f"{source.random() * 100:.6f}" for _ in range(3))
    at = 1_767_225_600_000 + source.getrandbits(34)
    text = f'{{"sensor":"s-{source.randint(0, 9999):04d}","at":{at},"v":[{values}],"ok":true'
    return f"{text[:99]:<99}}}".encode()


_KINDS_OF_VALUES: Mapping[str, tuple[Callable[[random.Random], bytes], int, int]] = {
    "random": (_random, 1024, 20_000),
    "json": (_json, 700, 50_000),
    "small": (_small, 100, 200_000),
}


def value_size(kind: str) -> int:
    """Bytes of each value of a kind."""
    return _KINDS_OF_VALUES[kind][1]


def values(kind: str) -> Sequence[bytes]:
    """The different values of a kind; a topic holds them again and again."""
    make, size, count = _KINDS_OF_VALUES[kind]
    source = random.Random(kind)
    made = [make(source) for _ in range(count)]
    assert {len(value) for value in made} == {size}
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesFiles:
    """The values of a kind in files: one after the other, and one on each line (useless for random bytes)."""

    plain: Path
    lines: Path
    size: int

    @classmethod
    def write(cls, kind: str, folder: Path) -> Self:
        """Write both, in a process of its own: this one's memory would be counted to its children."""
        files = cls(plain=folder / f"{kind}.plain", lines=folder / f"{kind}.lines", size=value_size(kind))
        subprocess.run(
            [sys.executable, "-m", "bench.payloads", kind, str(files.plain), str(files.lines)], check=True
        )
        return files


def _write(kind: str, plain: str, lines: str) -> None:
    made = values(kind)
    Path(plain).write_bytes(b"".join(made))
    Path(lines).write_bytes(b"\n".join(made) + b"\n")


if __name__ == "__main__":
    _write(*sys.argv[1:])
