"""What Dagster loads: everything below ``defs``."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    # A run is one process, and ends with it: the engine brings its own threads.
    return dg.Definitions.merge(found, dg.Definitions(executor=dg.in_process_executor))
