"""``python -m kafka_backup.cli``."""

from kafka_backup.cli.commands import main

main(prog_name="kafka-backup")
