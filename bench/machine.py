"""The machine that was measured on, without anything that names it or its user."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import confluent_kafka

from bench.broker import KAFKA_VERSION


def describe(work: Path) -> dict[str, Any]:
    """Processor, memory, kernel, versions, and the kind of file system under `work`."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    found = re.search(r'version "([^"]+)"', java)
    return {
        "cpu": _first(Path("/proc/cpuinfo"), r"model name\s*: (.+)"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_first(Path("/proc/meminfo"), r"MemTotal:\s*(\d+) kB")) / 2**20, 1),
        "kernel": platform.release().split("-")[0],
        "file_system": _file_system(work),
        "python": platform.python_version(),
        "java": found[1] if found else "unknown",
        "kafka": KAFKA_VERSION,
        "kafka_backup": version("kafka-backup-dagster"),
        "confluent_kafka": confluent_kafka.version(),
        "librdkafka": confluent_kafka.libversion()[0],
    }


def _first(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text())
    return found[1].strip() if found else "0"


def _file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`: the mount with the longest name that leads to it."""
    kinds = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _device, place, kind, *_rest = line.split()
        kinds[Path(place)] = kind
    return next(kinds[place] for place in (folder, *folder.parents) if place in kinds)
