"""The testing PRD, name by name, and where each of its tests is in this suite.

`python -m tests.support.testing_prd` writes the table into docs/testing.md; `tests/unit/test_testing_document.py`
sees to it that the table is true.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- the PRD's tests: begin -->", "<!-- the PRD's tests: end -->"

SECTIONS: Mapping[str, Sequence[str]] = {
    "Known disasters (part 2)": (
        "verify_offset_commit_idempotence_under_rebalance",
        "chaos_broker_failure_mid_restore",
        "chaos_partition_leader_election_during_backup",
        "backup_with_unclean_leader_election_enabled",
        "chaos_network_partition_during_offset_fetch",
        "roundtrip_compression_zstd_all_sizes",
        "offset_reset_validates_high_watermark",
        "verify_atomicity_restore_and_offset_reset",
        "backup_restore_preserves_message_headers",
        "timestamp_filtering_preserves_millisecond_accuracy",
    ),
    "unit/backup (3.1)": (
        "encode_decode_kafka_record_preserves_all_fields",
        "encode_record_with_null_key_preserves_semantics",
        "encode_record_with_large_headers_does_not_truncate",
        "topic_filter_regex_matches_correctly",
        "topic_filter_wildcard_matches_correctly",
        "topic_filter_list_matches_exactly",
        "timestamp_mapping_preserves_millisecond_precision",
        "timestamp_filtering_matches_boundary_conditions",
        "timestamp_filtering_handles_no_matches",
        "compression_zstd_roundtrip_small_message",
        "compression_zstd_roundtrip_large_message",
        "compression_zstd_compresses_repetitive_data",
        "compression_zstd_does_not_compress_random_data",
        "decompression_corrupted_data_returns_error",
        "records_maintain_offset_order_within_partition",
        "offset_gaps_are_preserved",
        "empty_partition_backup_succeeds",
        "single_message_partition_backup_succeeds",
    ),
    "unit/restore (3.2)": (
        "restore_filters_messages_before_start_time",
        "restore_filters_messages_after_end_time",
        "restore_time_filter_boundary_inclusive_on_both_ends",
        "restore_all_messages_within_window",
        "decompress_segment_reads_all_messages",
        "decompress_segment_with_large_messages",
        "decompress_empty_segment_returns_empty_vec",
        "restored_messages_maintain_partition_order",
        "restored_messages_per_partition_are_sorted_by_offset",
        "apply_offset_mapping_to_record_header",
        "offset_mapping_preserves_existing_headers",
        "restore_empty_backup_succeeds",
        "restore_single_message_backup_succeeds",
        "restore_with_timestamp_before_all_messages",
        "restore_with_timestamp_after_all_messages",
    ),
    "unit/offset_mapping (3.3)": (
        "offset_state_serialization_preserves_all_fields",
        "offset_mapping_deduplication_keeps_latest",
        "group_offset_state_groups_correctly",
    ),
    "integration (4)": (
        "test_pitr_restore_accuracy_single_partition",
        "test_pitr_restore_with_multiple_partitions",
        "test_offset_reset_idempotence",
        "test_offset_commit_under_rebalance",
        "test_offset_reset_validates_high_watermark",
    ),
    "chaos (5)": (
        "chaos_broker_failure_mid_backup",
        "chaos_network_partition_during_offset_fetch",
        "chaos_partition_leader_election_during_restore",
    ),
    "Matrix of failures (8)": (
        "roundtrip_compression_zstd_all_sizes",
        "offset_gaps_are_preserved",
        "timestamp_filtering_millisecond_precision",
        "chaos_broker_failure_mid_backup",
        "chaos_partition_leader_election",
        "backup_with_unclean_leader_election_enabled",
        "chaos_network_partition_offset_fetch",
        "offset_reset_validates_high_watermark",
        "verify_atomicity_restore_offset_reset",
    ),
    "Files of its tree (6.1)": (
        "bulk_offset_reset",
        "offset_rollback_e2e",
        "compression_edge_cases",
        "full_restore_flow",
        "disaster_recovery_simulation",
        "concurrent_operations",
    ),
}
"""Every test that the PRD names, where it names it."""

OTHER_NAMES: Mapping[str, Sequence[str]] = {
    "timestamp_filtering_millisecond_precision": ("timestamp_filtering_preserves_millisecond_accuracy",),
    "chaos_partition_leader_election": (
        "chaos_partition_leader_election_during_backup",
        "chaos_partition_leader_election_during_restore",
    ),
    "chaos_network_partition_offset_fetch": ("chaos_network_partition_during_offset_fetch",),
    "verify_atomicity_restore_offset_reset": ("verify_atomicity_restore_and_offset_reset",),
}
"""What the PRD calls by two names."""


@dataclass(frozen=True)
class Test:
    """A test of this suite: its file, its name, and the first line of what it says of itself."""

    path: Path
    name: str
    claim: str

    @property
    def place(self) -> str:
        """File and name, as pytest takes them."""
        return f"{self.path.relative_to(ROOT)}::{self.name}"


@cache
def all_tests() -> Sequence[Test]:
    """Every test function of the suite; read, not run."""
    found = []
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                claim = (ast.get_docstring(node) or "").strip().split("\n")[0]
                found.append(Test(path, node.name, claim))
    return found


def where(name: str, tests: Sequence[Test]) -> Sequence[Test]:
    """The tests that stand for a name of the PRD; a name of a file stands for all tests in that file."""
    wanted = OTHER_NAMES.get(name, (name,))
    names = [each if each.startswith("test_") else f"test_{each}" for each in wanted]
    found = [test for test in tests if test.name in names]
    return found or [test for test in tests if test.path.stem == f"test_{name}"]


def table() -> Iterator[str]:
    """The lines of the table, the pyramid above it."""
    tests = all_tests()
    kinds = Counter(test.path.parent.name for test in tests)
    share = ", ".join(f"{count} {kind} ({count / len(tests):.0%})" for kind, count in kinds.most_common())
    yield from ("", f"The pyramid, in test functions (one often runs for many parameters): {share}.")
    for section, names in SECTIONS.items():
        yield from ("", f"### {section}", "", "| the PRD's name | here | what it tests |", "|---|---|---|")
        for name in names:
            for test in where(name, tests):
                claim = test.claim.removeprefix("What: ").replace("|", "\\|")
                yield f"| `{name}` | `{test.place}` | {claim} |"
            if not where(name, tests):
                yield f"| `{name}` | not yet | |"
    yield ""


def rewritten(document: str) -> str:
    """The document with a new table."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n" + "\n".join(table()) + f"\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text()))
