"""What users' files and machines do wrong: each fault is refused in one line, accepted rightly, or recovered from.

`python -m tests.faults` runs all of it and writes the table `tests/faults.md`.
"""
