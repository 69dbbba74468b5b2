"""Which topics and groups a request means: exact names, wildcards, regular expressions, exclusions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Self

from kafka_backup.errors import ConfigurationError

_EXACT = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_WILDCARD = re.compile(r"[a-zA-Z0-9._*?-]+")
_WILDCARDS = {"*": ".*", "?": "."}


class FilterKind(Enum):
    """How a filter is written: exactly, with wildcards, or as a regular expression."""

    EXACT = "exact"
    WILDCARD = "wildcard"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class NameFilter:
    """One filter. Matching is case-sensitive and covers the whole name.

    A regular expression is searched in the name, as Kafka's own tools do: ``^`` and ``$`` anchor it.
    """

    noun: ClassVar[str] = "name"

    text: str
    kind: FilterKind
    _pattern: re.Pattern[str] = field(repr=False)

    @classmethod
    def exact(cls, name: str) -> Self:
        """Match exactly this name."""
        return cls(name, FilterKind.EXACT, re.compile(rf"\A{re.escape(name)}\Z"))

    @classmethod
    def wildcard(cls, pattern: str) -> Self:
        """Match names by ``*`` (any characters) and ``?`` (one character)."""
        parts = (_WILDCARDS.get(part) or re.escape(part) for part in re.split(r"([*?])", pattern))
        return cls(pattern, FilterKind.WILDCARD, re.compile(rf"(?s)\A{''.join(parts)}\Z"))

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Match names in which `pattern`, a Python regular expression, is found."""
        if not pattern:
            raise ConfigurationError(f"{cls.noun} filter //: empty (write * for all {cls.noun}s)")
        try:
            return cls(f"/{pattern}/", FilterKind.REGEX, re.compile(pattern))
        except re.error as error:
            raise ConfigurationError(
                f"{cls.noun} filter /{pattern}/: not a valid regular expression ({error})"
            ) from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a filter as it is written in configuration files and on the command line.

        Raises:
            ConfigurationError: the filter is empty, malformed, or not a possible name.
        """
        if len(text) >= 2 and text.startswith("/") and text.endswith("/"):
            return cls.regex(text[1:-1])
        if "*" in text or "?" in text:
            return cls.wildcard(text)
        return cls.exact(text)

    def matches(self, name: str) -> bool:
        """Whether the filter matches the name."""
        return self._pattern.search(name) is not None


class TopicFilter(NameFilter):
    """A filter of topics."""

    __slots__ = ()
    noun = "topic"

    @classmethod
    def exact(cls, name: str) -> Self:
        """Match exactly this topic name."""
        if not _EXACT.fullmatch(name) or name in (".", ".."):
            raise ConfigurationError(f"topic filter {name!r}: not a Kafka topic name")
        return super().exact(name)

    @classmethod
    def wildcard(cls, pattern: str) -> Self:
        """Match names by ``*`` (any characters) and ``?`` (one character)."""
        if not _WILDCARD.fullmatch(pattern):
            raise ConfigurationError(
                f"topic filter {pattern!r}: only topic name characters, * and ? may occur"
            )
        return super().wildcard(pattern)


class GroupFilter(NameFilter):
    """A filter of consumer groups, whose names may hold any character."""

    __slots__ = ()
    noun = "group"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a filter; the group with the empty name is written ``/^$/``."""
        if not text:
            raise ConfigurationError("group filter '': empty (write * for all groups)")
        return super().parse(text)


def _takes(wanted: TopicFilter, topic: str, internal: bool) -> bool:
    return (not internal or wanted.kind is FilterKind.EXACT) and wanted.matches(topic)


@dataclass(frozen=True, slots=True)
class TopicSelection:
    """The topics that some filters include and none excludes.

    Internal topics (``__consumer_offsets``) are taken only when an exact filter names them.
    """

    include: tuple[TopicFilter, ...]
    exclude: tuple[TopicFilter, ...] = ()

    @classmethod
    def parse(cls, include: Iterable[str], exclude: Iterable[str] = ()) -> TopicSelection:
        """Read filters as written; raises ConfigurationError for a malformed one."""
        return cls(tuple(map(TopicFilter.parse, include)), tuple(map(TopicFilter.parse, exclude)))

    @classmethod
    def instead(cls, include: Iterable[str], exclude: Iterable[str]) -> TopicSelection:
        """Read filters that are given in place of the configured ones, whose exclusions stay in force.

        Raises:
            ConfigurationError: a filter is malformed, or an exclusion takes away a topic that is named exactly.
        """
        selection = cls.parse(include, exclude)
        for wanted in selection.include:
            against = [f.text for f in selection.exclude if f.matches(wanted.text)]
            if wanted.kind is FilterKind.EXACT and against:
                raise ConfigurationError(
                    f"topic {wanted.text!r} was named, and the configuration excludes it ({', '.join(against)})"
                )
        return selection

    def includes(self, topic: str, *, internal: bool = False) -> bool:
        """Whether the selection takes this topic."""
        wanted = any(_takes(f, topic, internal) for f in self.include)
        return wanted and not any(f.matches(topic) for f in self.exclude)

    def idle(self, topics: Iterable[str], *, internal: Iterable[str] = ()) -> Sequence[str]:
        """Return the filters that match none of these topics, as they are written; see `select`."""
        hidden = set(internal)
        names = [(name, name in hidden) for name in topics]
        return [f.text for f in self.include if not any(_takes(f, name, inner) for name, inner in names)]

    def select(self, topics: Iterable[str], *, internal: Iterable[str] = (), where: str) -> Sequence[str]:
        """Return the selected names, sorted.

        Args:
            topics: all existing topic names.
            internal: those of them that are internal to Kafka.
            where: what `topics` is a list of ("the cluster"), for the error message.

        Raises:
            ConfigurationError: an exact filter names a topic that does not exist.
        """
        names = set(topics)
        hidden = set(internal)
        for wanted in self.include:
            if wanted.kind is FilterKind.EXACT and wanted.text not in names:
                raise ConfigurationError(f"topic {wanted.text!r} was named but does not exist in {where}")
        return sorted(name for name in names if self.includes(name, internal=name in hidden))


@dataclass(frozen=True, slots=True)
class GroupSelection:
    """The consumer groups that some filters include and none excludes."""

    include: tuple[GroupFilter, ...]
    exclude: tuple[GroupFilter, ...] = ()

    @classmethod
    def parse(cls, include: Iterable[str], exclude: Iterable[str] = ()) -> GroupSelection:
        """Read filters as written; raises ConfigurationError for a malformed one."""
        return cls(tuple(map(GroupFilter.parse, include)), tuple(map(GroupFilter.parse, exclude)))

    def includes(self, group: str) -> bool:
        """Whether the selection takes this group."""
        return any(f.matches(group) for f in self.include) and not any(f.matches(group) for f in self.exclude)

    def select(self, groups: Iterable[str]) -> Sequence[str]:
        """Return the selected names, sorted."""
        return sorted(filter(self.includes, groups))

    def missing(self, groups: Iterable[str]) -> Sequence[str]:
        """Return the names that exact filters ask for and that are not there, sorted."""
        return sorted({f.text for f in self.include if f.kind is FilterKind.EXACT} - set(groups))
