"""Takes out lines that keep a promise, one at a time, and demands that a test notices.

scripts/mutants.toml lists them: the promise, the file, what stands there (once), what is put in its place, and the tests
that must fail then. Each runs in a copy of the project; the tests must pass in the copy as it is.

Usage: mutants.py [--jobs N] [--without-broker] [--trust] [WORD...]: all of them, or those whose promise or file holds a
word. With --trust the tests are not run in the unchanged copy first, because they are known to pass.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("core", "kafka_backup_dagster", "tests", "demo", "docs", "pyproject.toml", "README.md", "Makefile")
TESTS_FAILED = 1
SECONDS = 900


@dataclass(frozen=True)
class Mutant:
    """A line that keeps a promise, and what is put in its place."""

    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self) -> str:
        """The file with the change.

        Raises:
            ValueError: what is to be replaced does not stand there exactly once.
        """
        text = (ROOT / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times: {self.old!r}")
        return text.replace(self.old, self.new)


class Copy:
    """A copy of the project in which tests run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "build")
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                shutil.copy(source, folder / name)

    def run(self, tests: Sequence[str], *, file: str = "", text: str = "") -> tuple[int, str]:
        """Run tests, with one file changed meanwhile; returns pytest's exit code and last words."""
        path = self._folder / file
        original = path.read_text() if file else ""
        if file:
            path.write_text(text)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
                 "--hypothesis-profile=mutants", *tests],
                cwd=self._folder, capture_output=True, text=True, timeout=SECONDS,
                env={**os.environ, "PYTHONPATH": f"{self._folder / 'core'}:{self._folder}", "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return TESTS_FAILED, "it ran for ever"
        finally:
            if file:
                path.write_text(original)
        return done.returncode, "\n".join(done.stdout.splitlines()[-15:])


def main(jobs: int, words: Sequence[str], *, with_broker: bool, trust: bool) -> int:
    """Try the mutants and print what became of each; the number of those that lived is the exit code."""
    listed = tomllib.loads((ROOT / "scripts" / "mutants.toml").read_text())["mutant"]
    mutants = [Mutant(**{**one, "tests": tuple(one["tests"])}) for one in listed]
    chosen = [
        one
        for one in mutants
        if (not words or any(word in f"{one.promise} {one.file}" for word in words))
        and (with_broker or not any("integration" in test or "chaos" in test for test in one.tests))
    ]
    texts = {}
    for one in chosen:
        try:
            texts[one] = one.applied()
        except ValueError as error:
            print(f"STALE    {one.promise}: {error}")
    if len(texts) < len(chosen):
        return len(chosen) - len(texts)
    lived = []
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for _ in range(jobs):
            copies.put(Copy(Path(tempfile.mkdtemp(dir=folder))))

        def run(tests: Sequence[str], **change: str) -> tuple[int, str]:
            copy = copies.get()
            try:
                return copy.run(tests, **change)
            finally:
                copies.put(copy)

        def check(tests: tuple[str, ...]) -> None:
            code, said = run(tests)
            if code:
                raise SystemExit(f"the tests fail without any change ({' '.join(tests)}):\n{said}")

        def attempt(one: Mutant) -> None:
            code, said = run(one.tests, file=one.file, text=texts[one])
            killer = next(
                (line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), said[-200:]
            )
            with lock:
                if code == TESTS_FAILED:
                    print(f"noticed  {one.promise}  ({killer.split(' - ')[0]})", flush=True)
                else:
                    lived.append(one)
                    print(f"LIVED    {one.promise}  ({one.file}; exit code {code})\n{said}", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(check, () if trust else dict.fromkeys(one.tests for one in chosen)))
            list(pool.map(attempt, chosen))
    print(f"{len(chosen)} lines taken out, {len(chosen) - len(lived)} noticed")
    return len(lived)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--without-broker", action="store_true")
    parser.add_argument("--trust", action="store_true")
    arguments = parser.parse_args()
    lived = main(
        arguments.jobs, arguments.words, with_broker=not arguments.without_broker, trust=arguments.trust
    )
    sys.exit(min(lived, 100))
