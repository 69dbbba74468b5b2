"""The Dagster part of the demo: the definitions of a `kafka-backup.yaml`, run in this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from demo import session
from demo.dev import write_config
from demo.topics import NAMES
from kafka_backup_dagster import build_definitions

CLUSTER = "demo"


@dataclass(frozen=True)
class Rate:
    """How long the engine took for a topic, Dagster's own time left out."""

    seconds: float


class Pipeline:
    """What `dagster dev` would load and a person would click, for the demo's topics."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        config = folder / "kafka-backup.yaml"
        write_config(config, bootstrap_servers, folder / "backups")
        # Without windows: there is nothing to schedule here.
        self._definitions = build_definitions(config, cluster_name=CLUSTER, partitions_def=None)
        self._instance = dg.DagsterInstance.ephemeral(tempdir=str(folder))

    def backup(self) -> dict[str, Rate]:
        """Materializes the assets of all topics, in one run."""
        job = self._definitions.resolve_implicit_global_asset_job_def()
        result = self._run(job, "the backup")
        rates = {}
        for event in result.get_asset_materialization_events():
            materialization = event.materialization
            rates[materialization.asset_key.path[-1]] = Rate(_seconds(materialization.metadata))
        if missing := set(NAMES) - rates.keys():
            raise session.SessionError(f"the backup did not materialize {', '.join(sorted(missing))}")
        return rates

    def restore(self, prefix: str) -> dict[str, Rate]:
        """Runs the restore job once for each topic, with the form that a person would fill in."""
        job = self._definitions.resolve_job_def(f"{CLUSTER}_restore")
        rates = {}
        for name in NAMES:
            form = {"restore_id": f"demo-{name}", "mode": "execute", "topics": [name], "prefix": prefix}
            result = self._run(job, f"the restore of {name}", form)
            (output,) = [event for event in result.all_node_events if event.is_successful_output]
            rates[name] = Rate(_seconds(output.step_output_data.metadata))
        return rates

    def _run(
        self, job: dg.JobDefinition, what: str, form: Mapping[str, object] | None = None
    ) -> dg.ExecuteInProcessResult:
        try:
            result = job.execute_in_process(run_config=form, instance=self._instance, raise_on_error=False)
        except dg.DagsterExecutionInterruptedError:
            # Dagster's own name for Ctrl-C while a run is under way.
            raise KeyboardInterrupt from None
        if not result.success:
            # ... or an interrupt is one more failure to it.
            if session.interrupts or _was_interrupted(result):
                raise KeyboardInterrupt
            raise session.SessionError(f"{what} failed: {_reason(result)}")
        return result


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    names = {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}
    return any(error is not None and error.cls_name in names for error in errors)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.get_step_failure_events():
        failure = event.step_failure_data
        if failure.user_failure_data and failure.user_failure_data.description:
            return failure.user_failure_data.description
        error = failure.error
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None:
            return error.message.strip()
    return "Dagster does not say why"


def _seconds(metadata: Mapping[str, dg.MetadataValue]) -> float:
    value = metadata["kafka_backup/seconds"].value
    # A topic so small that it took no time would divide by zero.
    return max(0.001, float(str(value)))
