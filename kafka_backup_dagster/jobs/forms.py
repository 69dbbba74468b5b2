"""What the jobs have in common: a flat form in the Launchpad, and errors that are sentences."""

from collections.abc import Callable

import dagster as dg
from pydantic_core import PydanticCustomError

from kafka_backup_dagster.metadata import Metadata

DRY_RUN: Metadata = {"kafka_backup/status": dg.MetadataValue.text("dry run: nothing was changed")}


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
