"""What plugins of all kinds promise."""

from __future__ import annotations

from typing import Any, ClassVar

from eigendet import plugins
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.plugins.discovery import Kind, Plugin


class Contract:
    """What plugins of all kinds promise.

    Attributes:
        kind: of plugins; each subclass here sets its own.
        plugin: the plugin's name, which a test class sets.
        options: those with which the plugin is tried.
    """

    kind: ClassVar[Kind]
    plugin: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @property
    def choice(self) -> PluginChoice:
        """The plugin with its options, as a configuration names it."""
        return PluginChoice(plugin=self.plugin, **self.options)

    @property
    def origin(self) -> Plugin:
        """The plugin; as text, its name, file and line."""
        return plugins.find(self.kind, self.plugin)

    def require(self, kept: bool, otherwise: str) -> None:
        """Raise UserError unless a promise is kept; `otherwise` completes the sentence that the plugin begins."""
        if not kept:
            raise UserError(f"{self.origin}: {otherwise}")

    def test_it_says_what_it_is(self) -> None:
        """Require a docstring, and options that the plugin accepts."""
        self.require(bool(self.origin.summary), "has no docstring; its first line is the summary.")
        plugins.bind(self.kind, self.choice)
