"""Measure what backups and restores cost, side by side with other clients; print it and keep it."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from bench import sides
from bench.broker import Broker, prepare_jars
from bench.compare import compare
from bench.machine import describe
from bench.measure import run
from bench.payloads import ValuesFiles
from bench.report import Results, show, show_figures
from bench.topics import Topic, TopicKind, make

_RESULTS = Path(__file__).with_name("results")
_MEMORY_FOLDER = Path("/dev/shm")
_NEEDED_BYTES = 10 << 30
_IDLE_TOPICS, _IDLE_PARTITIONS = 100, 10

RANDOM = TopicKind(
    name="random-1k",
    title="1 KB random, uncompressed",
    values="random",
    records=1_000_000,
    compression="none",
)
JSON = TopicKind(name="json-700", title="700 B JSON, zstd", values="json", records=3_000_000, codec="zstd")
SMALL = TopicKind(
    name="small-100",
    title="100 B, lz4 in 16 KB batches",
    values="small",
    records=10_000_000,
    codec="lz4",
    batch_bytes=16_384,
)
COMPACTED = replace(
    SMALL,
    name="compacted",
    title="100 B with keys, lz4 in 16 KB batches, compacted with gaps",
    compacted=True,
)
SINGLE = TopicKind(
    name="single", title="100 B, each record a batch", values="small", records=500_000, batch_bytes=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run of the benchmarks.

    Attributes:
        work: folder for the broker's log and the repositories.
        console: where tables are printed.
        results: where figures are kept; None: nowhere.
        runs: of each side.
        quick: only see that everything works.
    """

    work: Path
    console: Console
    results: Results | None
    runs: int
    quick: bool

    def compare(
        self,
        broker: Broker,
        name: str,
        title: str,
        topic: Topic | None,
        contestants: Sequence[sides.Side],
        *,
        stored_bytes: int | None = None,
    ) -> None:
        """Run a comparison, print and keep it; in bytes of a topic's values, or of a repository if given."""
        found = compare(
            broker,
            contestants,
            name=name,
            title=title,
            logical_bytes=stored_bytes or (topic.logical_bytes if topic else 0),
            of="stored bytes" if stored_bytes else "values",
            records=topic.records if topic else 0,
            runs=self.runs,
        )
        self.keep("comparisons", name, found.to_document())

    def keep(self, section: str, name: str, document: Mapping[str, Any]) -> None:
        """Print a document and keep it."""
        show(document, self.console)
        if self.results is not None:
            self.results.add(section, name, document)

    def keep_figures(self, name: str, title: str, figures: Mapping[str, float]) -> None:
        """Print plain figures and keep them."""
        show_figures(title, figures, self.console)
        if self.results is not None:
            self.results.add("figures", name, {"title": title, "figures": figures})

    def scaled(self, kind: TopicKind) -> TopicKind:
        """The kind with as many records as this run takes; a cleaner needs more of them."""
        return replace(kind, records=kind.records // (10 if kind.compacted else 100)) if self.quick else kind


def copy(bench: Bench, kind: TopicKind) -> None:
    """Backup, verification and restore of one kind of topic, each beside what else reads or writes it."""
    kind = bench.scaled(kind)
    values = ValuesFiles.write(kind.values, bench.work)
    with Broker(bench.work / "broker") as broker:
        topic = make(broker, kind, values)
        repository = sides.Repository(broker, bench.work / "repository", compression=kind.compression)
        readers = [
            sides.Backup(topic, repository),
            sides.Consume(broker, topic),
            sides.ConsumerPerformance(broker, topic),
            sides.Fetch(broker, topic),
        ]
        bench.compare(broker, f"backup-{kind.name}", f"Backup: {kind.title}", topic, readers)
        run(repository.command("backup", "--topic", topic.name))
        writers = [
            sides.Restore(broker, topic, repository),
            # A lower bound that keeps everything: each record's time is looked at.
            sides.Restore(broker, topic, repository, "--from", "2000-01-01T00:00:00Z"),
            sides.Produce(broker, topic, values),
            sides.ProducerPerformance(broker, topic, values),
        ]
        bench.compare(broker, f"restore-{kind.name}", f"Restore: {kind.title}", topic, writers)
        provers = [sides.Verify(repository, records=topic.records), sides.Sha256Sum(repository)]
        title, stored = f"Verify: {kind.title}", repository.stored_bytes()
        bench.compare(broker, f"verify-{kind.name}", title, topic, provers, stored_bytes=stored)
        repository.remove()


def growth(bench: Bench) -> None:
    """Four times the data: time and memory of a backup and of a restore."""
    small = bench.scaled(SMALL)
    for factor in (1, 4):
        kind = replace(small, name=f"grown-x{factor}", records=small.records * factor)
        values = ValuesFiles.write(kind.values, bench.work)
        with Broker(bench.work / "broker") as broker:
            topic = make(broker, kind, values)
            repository = sides.Repository(broker, bench.work / "repository", compression=kind.compression)
            title = f"{kind.title}, {factor} times the data"
            backup = [sides.Backup(topic, repository)]
            bench.compare(broker, f"backup-{kind.name}", f"Backup: {title}", topic, backup)
            run(repository.command("backup", "--topic", topic.name))
            restore = [sides.Restore(broker, topic, repository)]
            bench.compare(broker, f"restore-{kind.name}", f"Restore: {title}", topic, restore)
            repository.remove()


def idle(bench: Bench) -> None:
    """A capture of 1,000 partitions that have nothing new."""
    with Broker(bench.work / "broker") as broker:
        for number in range(_IDLE_TOPICS):
            broker.create_topic(f"idle-{number}", _IDLE_PARTITIONS)
        repository = sides.Repository(broker, bench.work / "repository", compression="auto")
        run(repository.command("backup"))
        title = f"{_IDLE_TOPICS * _IDLE_PARTITIONS:,} partitions that have nothing new"
        bench.compare(broker, "idle", title, None, [sides.NoOpBackup(repository, topics=_IDLE_TOPICS)])
        repository.remove()


def long_repository(bench: Bench) -> None:
    """Open a repository with a long past."""
    topics, commits = (20, 30) if bench.quick else (1000, 100)
    folder = str(bench.work / "long")
    module = [sys.executable, "-m", "bench.long_repository"]
    run([*module, "make", folder, str(topics), str(commits)])
    seconds = []
    for _ in range(bench.runs):
        _, printed = run([*module, "open", folder])
        opened, taken = printed.split()
        if int(opened) != topics * commits:
            raise sides.SideFailedError(f"{opened} commits were found, {topics * commits} are there")
        seconds.append(float(taken))
    shutil.rmtree(folder)
    title = f"A repository of {topics:,} topics and {topics * commits:,} commits is opened, all logs of it"
    figures = {"seconds, least": min(seconds), "seconds, median": median(seconds)}
    bench.keep_figures("long-repository", title, figures)


def slow_path(bench: Bench) -> None:
    """Records a second where each record is looked at."""
    _, printed = run([sys.executable, "-m", "bench.slow_path"])
    title = "Records of 100 bytes a second on one core, decompression and compression apart"
    bench.keep_figures("slow-path", title, json.loads(printed))


WORKS: Mapping[str, Callable[[Bench], None]] = {
    **{
        kind.name: lambda bench, kind=kind: copy(bench, kind)
        for kind in (RANDOM, JSON, SMALL, COMPACTED, SINGLE)
    },
    "growth": growth,
    "idle": idle,
    "long-repository": long_repository,
    "slow-path": slow_path,
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each side, alternately (default: 5)")
    parser.add_argument("--only", action="append", choices=WORKS, help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the data, one run, nothing kept")
    parser.add_argument("--work", type=Path, help="folder for the broker's log and the repositories")
    options = parser.parse_args()
    prepare_jars()
    parent = options.work or _work_folder()
    with tempfile.TemporaryDirectory(prefix="kafka-backup-bench-", dir=parent) as work:
        bench = Bench(
            work=Path(work),
            console=Console(width=150),
            results=None if options.quick else Results(_RESULTS, describe(Path(work))),
            runs=1 if options.quick else options.runs,
            quick=options.quick,
        )
        for name in options.only or WORKS:
            WORKS[name](bench)
    if bench.results is not None:
        bench.results.draw()


def _work_folder() -> Path | None:
    """Memory where there is enough of it: software is measured, not a disk."""
    if _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > _NEEDED_BYTES:
        return _MEMORY_FOLDER
    return None


if __name__ == "__main__":
    sys.exit(main())
