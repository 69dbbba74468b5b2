"""The command line in a folder of its own, as people and schedulers use it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from kafka_backup.cli import main
from tests.support.engine import NEAR

COMMAND = [sys.executable, "-m", "kafka_backup.cli"]


class Answer(NamedTuple):
    """What a command wrote."""

    stdout: str
    stderr: str


class Shell:
    """Runs the command in a folder with a configuration."""

    def __init__(
        self, folder: Path, bootstrap_servers: str, *, retry_seconds: float = 2, **backup: object
    ) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.configure(bootstrap_servers, retry_seconds=retry_seconds, **backup)

    def configure(self, bootstrap_servers: str, *, retry_seconds: float = 2, **backup: object) -> None:
        """Writes the configuration; `backup` is its section of that name."""
        cluster = {
            "bootstrap_servers": bootstrap_servers,
            "retry_seconds": retry_seconds,
            "properties": NEAR,
        }
        config = {"cluster": cluster, "repository": {"url": f"file://{self.repository}"}, "backup": backup}
        (self.folder / "kafka-backup.yaml").write_text(json.dumps(config))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command as a process of its own."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, spawn: bool = False) -> Answer:
        """Runs a command to its end; in this process, unless told otherwise: starting one takes seconds."""
        if spawn:
            with self.start(*arguments) as process:
                answer = Answer(*process.communicate(timeout=120))
            ended = process.returncode
        else:
            config = str(self.folder / "kafka-backup.yaml")
            result = CliRunner().invoke(main, ["--config", config, *arguments])
            answer = Answer(result.stdout, result.stderr)
            ended = result.exit_code
        assert ended == code, f"{arguments}: {ended}\n{answer.stdout}\n{answer.stderr}"
        assert "Traceback" not in answer.stderr
        return answer

    def json(self, *arguments: str, code: int = 0, spawn: bool = False) -> Any:
        """Runs a command and returns its JSON document."""
        return json.loads(self.run(*arguments, "--json", code=code, spawn=spawn).stdout)

    def files(self) -> list[Path]:
        """All objects of the repository."""
        return sorted(path for path in self.repository.rglob("*") if path.is_file())

    def segments(self) -> list[Path]:
        """Its segments."""
        return [path for path in self.files() if ".log" in path.name]
