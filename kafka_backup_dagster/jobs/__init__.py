"""Jobs: what a person launches by hand, on a bad day."""
