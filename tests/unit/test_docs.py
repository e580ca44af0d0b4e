"""The manual says what is so: examples run, commands exist, settings are valid, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
import torchvision
import yaml

from docs import generate
from eigendet import config, plugins
from eigendet.cli import main
from eigendet.config.sections import CovarianceSettings, DetectorTraining, Pretraining, Section, WidthSettings
from tests.conftest import ROOT
from tests.simulated import compare, simulate

PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in (".", "config", "plugins", "results")),
]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

SECTIONS: dict[str, type[Section]] = {
    "pretraining": Pretraining,
    "training": DetectorTraining,
    "covariance": CovarianceSettings,
    "widths": WidthSettings,
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block of a page: what stands after the fence, and the lines inside."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    text = page.read_text()
    for found in re.finditer(r"^( *)```([\w-]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        lines = found[3].splitlines()
        yield Block(found[2], "\n".join(line[len(found[1]) :] for line in lines), text[: found.start()].count("\n") + 2)


def lines_of_shell(page: Path) -> Iterator[str]:
    """Yield the lines that a page tells to type, continued ones joined, and what it names in the text."""
    text = page.read_text()
    for block in blocks(page):
        if block.language in ("", "sh", "shell", "bash", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield line.removeprefix("$ ")
    fences = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", fences.sub("", text))


@pytest.mark.parametrize("name", generate.PAGES)
def test_what_follows_from_the_code_is_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generate.page(name), "run `make generated`"


@each_page
def test_examples_run_one_after_another(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run blocks of `python`; those of `py` are shown alone, since they are Snakefiles, or need what is not here."""
    examples = [block for block in blocks(page) if block.language == "python"]
    if not examples:
        return
    if any("results/digits" in block.text for block in examples):
        simulate(tmp_path / "results/digits", steps=(0, 1, 260))
        compare(tmp_path / "results/digits")
    monkeypatch.chdir(tmp_path)
    model = torchvision.models.resnet50(weights=None).eval()  # what stands for the reader's own
    names: dict[str, Any] = {"__name__": "example", "model": model, "loader": [torch.rand(2, 3, 64, 64)]}
    for block in examples:
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, names)


@each_page
def test_commands_and_targets_are_there(page: Path) -> None:
    wrong = []
    for line in lines_of_shell(page):
        words = shlex.split(line, comments=True) if line.startswith(("eigendet ", "make ")) else []
        try:
            if words[:1] == ["make"]:
                wrong += [f"{line}: no target" for word in words[1:] if "=" not in word and word not in TARGETS]
            elif words[:1] == ["eigendet"] and "…" not in line:
                parse(main, words)
        except click.UsageError as error:
            wrong.append(f"{line}: {error.format_message()}")
    assert wrong == []


def parse(command: click.Command, words: list[str]) -> None:
    """Parse a line as a command does, without looking for files or for what is left out.

    Raises:
        click.UsageError: there is no such command or option.
    """
    context = click.Context(command, info_name=words[0], allow_interspersed_args=command.allow_interspersed_args)
    _, rest, _ = command.make_parser(context).parse_args(words[1:])
    if isinstance(command, click.Group) and rest:
        name, inner, _ = command.resolve_command(context, rest)
        assert inner is not None
        parse(inner, [str(name), *rest[1:]])


def test_a_command_or_an_option_that_is_not_there_is_noticed() -> None:
    for words in (["eigendet", "dump"], ["eigendet", "train", "--arms", "x"], ["eigendet", "plugins", "lists"]):
        with pytest.raises(click.UsageError):
            parse(main, words)


def test_options_of_snakemake_are_there() -> None:
    help_text = subprocess.run(["snakemake", "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--[a-z][\w-]+", help_text))
    lines = [line for page in PAGES for line in lines_of_shell(page) if line.startswith("snakemake ")]
    used = {option for line in lines for option in re.findall(r" (--[a-z][\w-]+)", line.partition(" # ")[0])}
    assert used and used - options == set()


@each_page
def test_settings_are_valid(page: Path) -> None:
    """Lay each block of YAML over the default experiment; what is of another file says so in its first line."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    for block in blocks(page):
        if block.language in ("yaml", "yml") and not re.match(r"# .*\b(profile|workflow)\b", block.text):
            experiment = config.parse(laid_over(default, yaml.safe_load(block.text)), f"{page}, line {block.line}")
            plugins.validate(experiment, paths=False)
    named = re.findall(r"`(covariance|widths|training|pretraining)\.(?!h5)(\w+)", page.read_text())
    wrong = [f"{section}.{key}" for section, key in named if key not in SECTIONS[section].model_fields]
    assert wrong == []


def laid_over(values: Any, changes: Any) -> Any:
    """Return mappings merged key by key; another plugin takes the place of all that was said of the one before."""
    if not (isinstance(values, dict) and isinstance(changes, dict)) or "plugin" in changes:
        return changes
    return values | {key: laid_over(values.get(key), change) for key, change in changes.items()}


@pytest.mark.parametrize(
    "page", ["README.md", "config/README.md", "plugins/README.md", "results/README.md", "tests/README.md"]
)
def test_links_of_readmes_lead_somewhere(page: str) -> None:
    """Check files and headings; links between the manual's own pages are mkdocs' to check."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            wrong.append(link)
    assert wrong == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as forges and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@each_page
def test_nothing_of_one_machine_is_said(page: Path) -> None:
    assert (
        re.findall(r"(?<![\w.])/(?:home|root|work|opt|tmp|Users)/\S*|pypi\S*/simple|file://\S*", page.read_text()) == []
    )


def test_the_manual_builds_without_broken_links_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {page.stem for page in pages}
    loads = r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//[^>]*>|<link[^>]*\shref=["']?(?:https?:)?//[^>]*>"""
    elsewhere = [found for text in pages.values() for found in re.findall(loads, text) if "canonical" not in found]
    styles = [style.read_text() for style in tmp_path.rglob("*.css")]
    elsewhere += [found for style in styles for found in re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)", style)]
    assert elsewhere == []
