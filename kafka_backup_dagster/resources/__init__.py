"""Resources: what assets, jobs and a user's own ops call."""
