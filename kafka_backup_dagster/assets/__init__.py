"""Assets: one for each topic that is backed up, and where they come from."""
