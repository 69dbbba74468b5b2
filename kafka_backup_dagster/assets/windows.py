"""Windows: the time spans that partition backups."""

from datetime import date, timedelta

import dagster as dg

HOURLY = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00")
"""The windows where nobody says since when. Say it, and no window before the first capture is shown."""
SHORTEST_WINDOW = timedelta(minutes=5)
_WINDOWS_LOOKED_AT = 100


def hourly_windows(start_date: str | date) -> dg.TimeWindowPartitionsDefinition:
    """Return windows of an hour in UTC, from the start of a day (``2026-11-24``) on.

    Write the day of the first backup and leave it: the windows before it are not shown.

    Raises:
        DagsterInvalidDefinitionError: not a day.
    """
    try:
        day = start_date if isinstance(start_date, date) else date.fromisoformat(start_date)
    except ValueError as error:
        raise dg.DagsterInvalidDefinitionError(
            f"start_date: {start_date!r} is not a day; write 2026-11-24"
        ) from error
    return dg.HourlyPartitionsDefinition(start_date=f"{day.isoformat()}-00:00")


def check_windows(partitions_def: dg.PartitionsDefinition | None) -> None:
    """Refuse windows so short that starting the runs costs more than the captures.

    Raises:
        DagsterInvalidDefinitionError: one of the first windows is shorter than 5 minutes.
    """
    if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
        return
    window = partitions_def.get_first_partition_window()
    for _ in range(_WINDOWS_LOOKED_AT):
        if window is None:
            return
        if window.end - window.start < SHORTEST_WINDOW:
            raise dg.DagsterInvalidDefinitionError(
                f"the windows of {partitions_def} are shorter than 5 minutes; choose longer ones (a run of "
                "Dagster takes about 5 seconds to start, and assets bear about 100,000 partitions)"
            )
        window = partitions_def.get_next_partition_window(window.end)
