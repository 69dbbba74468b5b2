"""The tests: unit, integration, chaos, e2e; and what they share, in support."""
