"""The configuration of an engine: one cluster, one repository, what to back up.

Everything wrong is found here, before anything is contacted, and named by its place in the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from kafka_backup.errors import ConfigurationError
from kafka_backup.selection import GroupSelection, TopicSelection
from kafka_backup.times import parse_time

_VARIABLE = re.compile(r"\$\{([^}]*)\}?")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUOTED = re.compile(r"""'(?!<)[^']{2,}'|"[^"]{2,}\"""")
_SIZE = re.compile(r"(\d+)\s*(B|KB|MB|GB|KiB|MiB|GiB)?")
_UNITS = {
    None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip


def parse_size(value: object) -> object:
    """Turn ``32MiB`` into bytes; leave numbers alone and everything else to the type check."""
    if isinstance(value, str):
        if not (match := _SIZE.fullmatch(value.strip())):
            raise ValueError(f"not a size: {value!r} (write 32MiB, 500MB or a number of bytes)")
        return int(match[1]) * _UNITS[match[2]]
    return value


def _as_text(value: object) -> object:
    """Give a YAML scalar as librdkafka and obstore want it: as text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _as_time(value: object) -> int:
    """Read a time as `parse_time` does, or as YAML has already: it knows RFC 3339 itself."""
    text = value.isoformat() if isinstance(value, date) else str(value)
    try:
        return parse_time(text)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


Size = Annotated[int, BeforeValidator(parse_size)]
Text = Annotated[str, BeforeValidator(_as_text)]


class _Section(BaseModel):
    # A wrong value may be a secret: pydantic must not show it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ClusterConfig(_Section):
    """Where a Kafka cluster is, and how to talk to it.

    Attributes:
        bootstrap_servers: ``host:port``, comma-separated; IPv6 addresses in brackets.
        properties: further librdkafka properties (security, timeouts); may hold secrets, so they
            never appear in a repr.
        oauth_cb: gets tokens for OAUTHBEARER as confluent-kafka's property of that name does: a function,
            or ``module:function``.
        retry_seconds: how long one operation is retried before it counts as failed.
    """

    bootstrap_servers: Annotated[str, Field(min_length=1)]
    properties: dict[str, Text] = Field(default_factory=dict, repr=False)
    oauth_cb: str | Callable[[str], Any] | None = Field(default=None, repr=False)
    retry_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0


class RepositoryConfig(_Section):
    """Where the backups are.

    Attributes:
        url: ``file:///path``, ``memory://name``, ``s3://bucket/prefix``, ``gs://``, ``az://``.
        options: obstore's options for that store; may hold secrets, never in a repr.
    """

    url: Annotated[str, Field(min_length=1)]
    options: dict[str, Text] = Field(default_factory=dict, repr=False)


class BackupConfig(_Section):
    """What a capture takes and how it stores it.

    Attributes:
        topics: filters: exact names, wildcards, ``/regular expressions/``.
        exclude: filters of topics to leave out.
        consumer_groups: filters of the groups whose positions each capture saves; none: no groups.
        compression: of segments: ``auto`` compresses where the producer did not.
        segment_bytes: raw bytes at which a segment is closed.
        max_concurrent_partitions: partitions fetched at the same time.
        max_bytes_per_second: what a capture fetches of all partitions together, at most.
        start: time (ms) at which partitions begin that were never captured; what is before is recorded
            as not captured. None: at their log start.
    """

    topics: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    consumer_groups: tuple[str, ...] = ("*",)
    compression: Literal["auto", "zstd", "none"] = "auto"
    segment_bytes: Annotated[Size, Field(ge=1 << 16, le=1 << 30)] = 32 << 20
    max_concurrent_partitions: Annotated[int, Field(ge=1, le=256)] = 8
    max_bytes_per_second: Annotated[Size, Field(ge=1 << 10)] | None = None
    start: Annotated[int, BeforeValidator(_as_time)] | None = None

    @model_validator(mode="after")
    def _filters_are_valid(self) -> Self:
        for name in ("topics", "exclude"):
            try:
                TopicSelection.parse(getattr(self, name))
            except ConfigurationError as error:
                raise ValueError(f"in {name}: {error}") from error
        try:
            GroupSelection.parse(self.consumer_groups)
        except ConfigurationError as error:
            raise ValueError(f"in consumer_groups: {error}") from error
        return self

    @property
    def selection(self) -> TopicSelection:
        """The configured filters of topics."""
        return TopicSelection.parse(self.topics, self.exclude)

    @property
    def group_selection(self) -> GroupSelection:
        """The configured filters of consumer groups."""
        return GroupSelection.parse(self.consumer_groups)


class EngineConfig(_Section):
    """Everything that an engine needs to know. See DESIGN section 10 for the YAML form."""

    cluster: ClusterConfig
    target: ClusterConfig | None = None
    repository: RepositoryConfig
    backup: BackupConfig = BackupConfig()

    @property
    def restore_target(self) -> ClusterConfig:
        """The cluster that restores write to: `target`, else `cluster`."""
        return self.target or self.cluster


class _KeyError(yaml.constructor.ConstructorError):
    """A key is wrong. Keys are no secrets, so that the message may quote them."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without tags, in which writing a key twice is an error: PyYAML would silently keep the last."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            # It may be a password that begins with "!": it must not be shown.
            problem = "a value cannot begin with an exclamation mark unless it is put in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _KeyError(None, None, "a list or mapping cannot be a key", key_node.start_mark)
            if key in seen:
                raise _KeyError(None, None, f"the key {key!r} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _expand(value: object, place: str, environment: Mapping[str, str], done: dict[int, object]) -> object:
    """Fill in variables; what an alias repeats (`done`) is expanded once, or a few lines could grow to gigabytes."""
    if isinstance(value, Mapping | list) and id(value) in done:
        return done[id(value)]
    if isinstance(value, Mapping):
        done[id(value)] = {
            key: _expand(item, f"{place}.{key}" if place else str(key), environment, done)
            for key, item in value.items()
        }
        return done[id(value)]
    if isinstance(value, list):
        done[id(value)] = [_expand(item, f"{place}[{i}]", environment, done) for i, item in enumerate(value)]
        return done[id(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if not match[0].endswith("}") or not _VARIABLE_NAME.fullmatch(match[1]):
            raise ConfigurationError(
                f"{place}: ${{ must begin the name of an environment variable: ${{NAME}}"
            )
        if match[1] not in environment:
            raise ConfigurationError(f"{place}: the environment variable {match[1]} is not set")
        return environment[match[1]]

    return _VARIABLE.sub(variable, value)


_PROBLEMS = {
    "extra_forbidden": "unknown key",
    "missing": "this key is missing",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "string_type": "expected text",
}


def _describe_yaml(error: yaml.YAMLError) -> str:
    """Say what is wrong and where, without PyYAML's excerpt of the line: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "it holds characters that YAML does not allow"
    problem = error.problem or "malformed"
    if not isinstance(error, _KeyError):
        problem = _QUOTED.sub("'...'", problem)
    mark = error.problem_mark
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False, include_input=False):
        place = ".".join(str(step) for step in item["loc"]) or "configuration"
        problem = _PROBLEMS.get(item["type"], item["msg"])
        lines.append(f"{place}: {problem.removeprefix('Value error, ')}")
    return "; ".join(lines)


def parse_config(
    content: object, *, source: str, environment: Mapping[str, str] | None = None
) -> EngineConfig:
    """Check a configuration given as plain mappings, with ``${VAR}`` filled in.

    Args:
        content: what the YAML file holds.
        source: where it comes from, for error messages.
        environment: the variables; by default the process's.

    Raises:
        ConfigurationError: naming the source and each wrong place.
    """
    variables = os.environ if environment is None else environment
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{source}: expected a mapping with the keys cluster, repository, backup")
    try:
        return EngineConfig.model_validate(_expand(content, "", variables, {}))
    except RecursionError:
        raise ConfigurationError(f"{source}: it contains itself, or is nested too deeply") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {_describe(error)}") from error


def load_config(path: str | Path, *, environment: Mapping[str, str] | None = None) -> EngineConfig:
    """Read a ``kafka-backup.yaml``.

    Raises:
        ConfigurationError: the file is absent, not YAML, or wrong; the message names the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    try:
        content = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        # Not chained: the original quotes the line, which may hold a secret.
        raise ConfigurationError(f"{path} is not valid YAML: {_describe_yaml(error)}") from None
    except ValueError:
        # A number that PyYAML takes for one and cannot read; again, its words may hold a secret.
        raise ConfigurationError(f"{path} is not valid YAML: it holds a number that cannot be read") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is nested too deeply") from None
    return parse_config(content, source=str(path), environment=environment)
