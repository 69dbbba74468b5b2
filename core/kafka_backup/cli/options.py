"""Options that several groups of commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import click

from kafka_backup.errors import ConfigurationError
from kafka_backup.selection import GroupFilter, TopicFilter
from kafka_backup.times import parse_time

T = TypeVar("T")


class Parsed(click.ParamType, Generic[T]):  # type: ignore[type-arg] # generic since click 8.3
    """An option's value as a function of the package reads it; its errors are usage errors."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Return what the text means; called by click."""
        try:
            return self._parse(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


FILTER = Parsed("filter", lambda text: TopicFilter.parse(text).text)
GROUP_FILTER = Parsed("filter", lambda text: GroupFilter.parse(text).text)
TIME = Parsed("time", parse_time)
PARTITION = click.IntRange(0, 2**31 - 1)
OFFSET = click.IntRange(0, 2**63 - 1)

as_json = click.option(
    "--json", is_flag=True, expose_value=False, help="Print one JSON document on stdout, also for errors."
)
topics_option = click.option(
    "--topic",
    "topics",
    multiple=True,
    type=FILTER,
    metavar="F",
    help="A topic name, a wildcard (app_*) or a /regular expression/. May be repeated.",
)
groups_option = click.option(
    "--group",
    "groups",
    multiple=True,
    type=GROUP_FILTER,
    metavar="F",
    help="A group's name, a wildcard (app_*) or a /regular expression/. May be repeated.",
)
