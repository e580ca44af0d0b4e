"""`python -m eigendet.config` prints the JSON schema of an experiment."""

from eigendet.config import schema_text

print(schema_text(), end="")
