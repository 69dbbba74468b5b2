"""The chart of the kept comparisons: bytes of values per second of each side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_OURS = "#1f6feb"
_OTHERS = ("#8b949e", "#b1bac4", "#d0d7de")


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw one panel for each comparison."""
    comparisons = [each for each in results["comparisons"].values() if len(each["sides"]) > 1]
    rows = (len(comparisons) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(13, 1.9 * rows), squeeze=False)
    for axis, comparison in zip(axes.flat, comparisons, strict=False):
        names = list(comparison["sides"])
        speeds = [side["megabytes_per_second"] for side in comparison["sides"].values()]
        bars = axis.barh(names, speeds, color=[_OURS, *_OTHERS][: len(names)])
        axis.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3, fontsize=8)
        axis.set_title(comparison["title"], fontsize=9, loc="left")
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(comparisons) :]:
        axis.set_axis_off()
    machine = results["machine"]
    figure.suptitle(
        f"MB of record values per second, whole processes, median. {machine['cpu']}, {machine['cores']} cores "
        f"shared with the broker, Kafka {machine['kafka']}, log and repository on {machine['file_system']}",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
