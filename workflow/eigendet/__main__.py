"""`python -m eigendet` is the command `eigendet`."""

from eigendet.cli import main

main(prog_name="eigendet")
