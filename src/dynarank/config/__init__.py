"""The schema of a run, and what a configuration may not hold."""
