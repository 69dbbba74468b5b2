"""What the jobs have in common: a flat form in the Launchpad, and errors that are sentences."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from kafka_backup_dagster.metadata import Metadata

if TYPE_CHECKING:
    from kafka_backup import RenameRule

DRY_RUN: Metadata = {"kafka_backup/status": dg.MetadataValue.text("dry run: nothing was changed")}


class RenameConfig(dg.Config):
    """A rule that gives restored topics, or groups, new names."""

    pattern: str = Field(description="A Python regular expression that must match the whole name.")
    replacement: str = Field(description=r"The new name; \1 stands for the first group of the pattern.")


def refuse_bad_form(ask: Callable[[], object]) -> None:
    """Call `ask`, which makes the engine's request, and refuse the form if it cannot.

    Raises:
        PydanticCustomError: with the engine's sentence and without pydantic's own words around it:
            the Launchpad shows this text.
    """
    from kafka_backup.errors import ConfigurationError

    try:
        ask()
    except (ValueError, ConfigurationError) as error:
        raise PydanticCustomError("form", "{problem}", {"problem": str(error)}) from error


@contextmanager
def sentences(field: str = "") -> Iterator[None]:
    """Turn what the engine says of a wrong value into one sentence that names the field.

    Args:
        field: the form's; without it each message names the place itself.

    Raises:
        ValueError: instead of ConfigurationError and ValidationError.
    """
    from kafka_backup.errors import ConfigurationError

    try:
        yield
    except ConfigurationError as error:
        raise ValueError(f"{field}: {error}" if field else str(error)) from error
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            place = ".".join(map(str, item["loc"])) or field
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {message}" if place else message)
        raise ValueError("; ".join(problems)) from error


def check_filters(*, topics: Sequence[str] = (), groups: Sequence[str] = ()) -> None:
    """Refuse filters, of the fields of these names, that the engine cannot read.

    Raises:
        ValueError: one is malformed.
    """
    from kafka_backup.selection import GroupSelection, TopicSelection

    with sentences("topics"):
        TopicSelection.parse(topics)
    with sentences("groups"):
        GroupSelection.parse(groups)


def milliseconds(field: str, text: str | None) -> int | None:
    """Return a form's time in ms since the epoch.

    Raises:
        ValueError: it is no time.
    """
    from kafka_backup.times import parse_time

    if text is None:
        return None
    with sentences(field):
        return parse_time(text)


def identifier(field: str, text: str) -> str:
    """Return the id of something stored.

    Raises:
        ValueError: it cannot be one.
    """
    from kafka_backup.repository.documents import Identifier

    with sentences(field):
        return TypeAdapter(Identifier).validate_python(text)


def rename_rules(rules: Sequence[RenameConfig], field: str = "rename") -> "tuple[RenameRule, ...]":
    """Return the rules in a field of a form as the engine's.

    Raises:
        ValueError: a pattern is not a regular expression.
    """
    from kafka_backup.repository.restore_documents import RenameRule

    for rule in rules:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise ValueError(f"{field}: {rule.pattern!r} is not a regular expression ({error})") from error
    return tuple(RenameRule(pattern=rule.pattern, replacement=rule.replacement) for rule in rules)


def build_form_job(
    op: dg.OpDefinition, form: type[dg.Config], *, name: str, kind: str, priority: int = 0
) -> dg.JobDefinition:
    """Make a job of one op whose Launchpad is the op's form, and nothing else.

    A config mapping does three things: it keeps the fields at the root, it hides the resources'
    configuration, and it runs the form's validators before there is a run.

    Args:
        op: takes `form` as its config; its description becomes the job's.
        form: the fields.
        name: of the job.
        kind: value of the tag ``kafka_backup/kind``, for limits on concurrent runs.
        priority: of its runs in the queue, higher first.
    """

    def to_op(val: dg.Config) -> dg.RunConfig:
        return dg.RunConfig(ops={op.name: val})

    to_op.__annotations__["val"] = form

    @dg.job(
        name=name,
        description=op.description,
        config=dg.config_mapping(to_op),
        executor_def=dg.in_process_executor,
        tags={"kafka_backup/kind": kind, "dagster/priority": str(priority)},
    )
    def form_job() -> None:
        op()

    return form_job
