"""Check that the plugin keeps its contract: `pytest FILE`, or `eigendet plugins check example`."""

from pathlib import Path

from eigendet.plugins.discovery import search
from eigendet.testing import Contract

search([Path(__file__).parent])


class TestExample(Contract):
    """The promises of its kind, each a test."""

    plugin = "example"
