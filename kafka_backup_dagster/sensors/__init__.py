"""Sensors: what looks at the cluster and the repository between captures."""
