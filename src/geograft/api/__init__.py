"""The Python interface: functions that make tile sets, and trained runs as objects."""
