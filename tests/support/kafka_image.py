"""Which Kafka image to run: the official one where it can be pulled, else one that we build.

`python -m tests.support.kafka_image [all]` prints its name, after pulling or building it; with `all` also that
of the oldest Kafka that the suite runs on.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import DockerException, ImageNotFound

VERSION = os.environ.get("KAFKA_VERSION", "4.4.0")
OLDEST = "3.9.2"
"""Of the last line before Kafka 4: `tests/integration/test_versions.py` runs on it too."""

PULL_SECONDS = 240
BUILD_SECONDS = 900


class NoKafkaImageError(RuntimeError):
    """There is no image, and none can be had."""


def image(version: str | None = None) -> str:
    """An image that is present: ours, or Apache's; pulled or built if there is none.

    Args:
        version: Of Kafka. None: `$KAFKA_TEST_IMAGE` if that is set, else `VERSION`.

    Raises:
        NoKafkaImageError: No Docker engine; or neither pulling nor building worked.
    """
    if version is None and (chosen := os.environ.get("KAFKA_TEST_IMAGE")):
        return chosen
    version = version or VERSION
    official = f"apache/kafka:{version}"
    with _one_at_a_time():
        try:
            client = docker.from_env(timeout=60)
        except DockerException as error:
            raise NoKafkaImageError(
                f"no Docker engine answers (`make docker` starts one): {error}"
            ) from error
        try:
            for name in (_local(version), official):
                with contextlib.suppress(ImageNotFound):
                    client.images.get(name)
                    return name
        finally:
            client.close()
        return official if _pull(official) else _build(version)


def _local(version: str) -> str:
    return f"kafka-local:{version}"


def _pull(official: str) -> bool:
    # By the client, not by the SDK: it knows the user's proxies and credentials, and it can be given a time
    # limit.
    print(f"pulling {official} ...", file=sys.stderr)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        pull = subprocess.run(
            ["docker", "pull", "--quiet", official], capture_output=True, text=True, timeout=PULL_SECONDS
        )
        if pull.returncode == 0:
            return True
        print(f"cannot pull it: {pull.stderr.strip()}", file=sys.stderr)
    return False


def _build(version: str) -> str:
    local = _local(version)
    print(f"building {local} here instead (about a minute) ...", file=sys.stderr)
    script = Path(__file__).with_name("kafka-image") / "build.sh"
    try:
        build = subprocess.run(
            ["bash", str(script), local],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
            env={**os.environ, "KAFKA_VERSION": version},
        )
    except subprocess.TimeoutExpired as error:
        raise NoKafkaImageError(f"building the Kafka image took over {BUILD_SECONDS} s") from error
    if build.returncode:
        raise NoKafkaImageError(
            "building the Kafka image failed:\n" + "\n".join(build.stdout.splitlines()[-15:])
        )
    return local


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Parallel test processes must not all build."""
    path = Path(tempfile.gettempdir()) / f"kafka-image-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(image())
        if sys.argv[1:] == ["all"]:
            print(image(OLDEST))
    except NoKafkaImageError as problem:
        sys.exit(f"error: {problem}")
