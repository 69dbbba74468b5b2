"""What is printed and kept: a table of each comparison, one JSON document, one chart."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_MEGA = 1e6


_COLUMNS = ("min", "median", "MB/s", "CPU s", "s/GB", "broker", "peak MB", "stored MB", "time", "CPU")


def show(document: Mapping[str, Any], console: Console) -> None:
    """Print a comparison; the two last columns say how many times as much as our side another one takes."""
    title = document["title"]
    if document["records"]:
        title += (
            f". {document['records']:,} records, {document['logical_bytes'] / 1e9:.2f} GB of {document['of']}"
        )
    console.print(f"\n{title}")
    table = Table("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for name, side in document["sides"].items():
        per_gigabyte = side["cpu_seconds_per_gigabyte"]
        table.add_row(
            name,
            f"{side['wall_min']:.2f} s",
            f"{side['wall_median']:.2f} s",
            f"{side['megabytes_per_second']:.0f}",
            f"{side['cpu_median']:.2f}",
            "" if per_gigabyte is None else f"{per_gigabyte:.2f}",
            f"{side['broker_cpu_median']:.2f}",
            f"{side['peak_memory'] / _MEGA:.0f}",
            "" if side["stored"] is None else f"{side['stored'] / _MEGA:.0f}",
            f"x {side['wall_ratio']:.2f}",
            f"x {side['cpu_ratio']:.2f}",
        )
    console.print(table)


def show_figures(title: str, figures: Mapping[str, float], console: Console) -> None:
    """Print plain figures."""
    console.print(f"\n{title}")
    table = Table("")
    table.add_column("", justify="right")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.0f}" if figure > 1000 else f"{figure:.2f}")
    console.print(table)


class Results:
    """The kept figures: one JSON document, whose parts are replaced as they are measured again, and a chart."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self._folder = folder
        self._file = folder / "results.json"
        self._machine = machine
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, section: str, name: str, document: Mapping[str, Any]) -> None:
        """Keep one document under its name; what else is there stays."""
        known = self._read()
        known["machine"] = self._machine
        dated = {"measured_on": f"{datetime.now(UTC):%Y-%m-%d}", **document}
        known.setdefault(section, {})[name] = dated
        self._file.write_text(json.dumps(known, indent=1) + "\n")

    def draw(self) -> None:
        """Draw all kept comparisons."""
        from bench.chart import draw  # matplotlib is only needed here

        draw(self._read(), self._folder / "results.png")

    def _read(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}
