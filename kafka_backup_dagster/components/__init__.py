"""Components: backups from a YAML file alone."""
