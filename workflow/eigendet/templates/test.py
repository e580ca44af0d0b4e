"""Whether the plugin keeps its contract: `pytest FILE`, or `eigendet plugins check example`."""

from pathlib import Path

from eigendet.contract import Contract
from eigendet.plugins.discovery import search

search([Path(__file__).parent])


class TestExample(Contract):
    plugin = "example"
