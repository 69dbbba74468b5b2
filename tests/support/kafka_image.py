"""Which Kafka image to run: the official one where it can be pulled, else one that we build.

`python -m tests.support.kafka_image` prints its name, after pulling or building it.
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
LOCAL = f"kafka-local:{VERSION}"
OFFICIAL = f"apache/kafka:{VERSION}"

PULL_SECONDS = 240
BUILD_SECONDS = 900


class NoKafkaImageError(RuntimeError):
    """There is no image, and none can be had."""


def image() -> str:
    """An image that is present: `$KAFKA_TEST_IMAGE`, ours, or Apache's; pulled or built if there is none.

    Raises:
        NoKafkaImageError: No Docker engine; or neither pulling nor building worked.
    """
    if chosen := os.environ.get("KAFKA_TEST_IMAGE"):
        return chosen
    with _one_at_a_time():
        try:
            client = docker.from_env(timeout=60)
        except DockerException as error:
            raise NoKafkaImageError(
                f"no Docker engine answers (`make docker` starts one): {error}"
            ) from error
        try:
            for name in (LOCAL, OFFICIAL):
                with contextlib.suppress(ImageNotFound):
                    client.images.get(name)
                    return name
        finally:
            client.close()
        return OFFICIAL if _pull() else _build()


def _pull() -> bool:
    # By the client, not by the SDK: it knows the user's proxies and credentials, and it can be given a time
    # limit.
    print(f"pulling {OFFICIAL} ...", file=sys.stderr)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        pull = subprocess.run(
            ["docker", "pull", "--quiet", OFFICIAL], capture_output=True, text=True, timeout=PULL_SECONDS
        )
        if pull.returncode == 0:
            return True
        print(f"cannot pull it: {pull.stderr.strip()}", file=sys.stderr)
    return False


def _build() -> str:
    print(f"building {LOCAL} here instead (about a minute) ...", file=sys.stderr)
    script = Path(__file__).with_name("kafka-image") / "build.sh"
    try:
        build = subprocess.run(
            ["bash", str(script), LOCAL],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
            env={**os.environ, "KAFKA_VERSION": VERSION},
        )
    except subprocess.TimeoutExpired as error:
        raise NoKafkaImageError(f"building the Kafka image took over {BUILD_SECONDS} s") from error
    if build.returncode:
        raise NoKafkaImageError(
            "building the Kafka image failed:\n" + "\n".join(build.stdout.splitlines()[-15:])
        )
    return LOCAL


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
    except NoKafkaImageError as problem:
        sys.exit(f"error: {problem}")
