from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from eigendet import plugins
from eigendet.cli import main, plugin_commands
from eigendet.config.sections import PluginChoice
from eigendet.errors import UserError
from eigendet.plugins import discovery

RULE = '"""Rules."""\n\n{extra}\nfrom eigendet.plugins import rule\n\n\n@rule\ndef {name}(values):\n    """A rule."""\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a plugin folder of its own, and none but the shipped ones beside it."""
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(discovery, "_further", [])
    return tmp_path / "plugins"


def listed(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plugins", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_list_says_what_each_plugin_is_and_where_it_stands(folder: Path) -> None:
    (folder / "mine.py").write_text(RULE.format(name="mine", extra=""))
    code, output = listed()
    rows = {tuple(line.split()[:2]): line.split(maxsplit=4) for line in output.splitlines()}
    assert code == 0
    assert rows["rule", "mine"][3:] == ["plugins/mine.py:8", "A rule."]
    assert len(rows["rule", "mine"][2]) == 8
    for kind in discovery.KINDS:
        assert {name for k, name in rows if k == kind} == discovery.discover(kind).keys()
        assert all(rows[kind, name][4:] for k, name in rows if k == kind), "every shipped plugin has a summary"


def test_the_list_imports_neither_torch_nor_any_plugin(folder: Path) -> None:
    (folder / "mine.py").write_text(RULE.format(name="mine", extra="raise SystemExit('imported')"))
    code = (
        "import sys; from eigendet.cli import main; main(['plugins'], standalone_mode=False);"
        "sys.exit(len({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "mine" in result.stdout, result.stderr


def test_the_names_of_authors_load_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; from eigendet.plugins import backbone, dataset, detector, rule;"
        "print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("extra", "unavailable"),
    [
        ("import absent_package.part", "absent_package is not installed: pip install absent_package"),
        ("import absent_a, absent_b", "absent_a and absent_b are not installed: pip install absent_a absent_b"),
        ("INSTALL = 'ask the laboratory'\nimport absent_a", "absent_a is not installed: ask the laboratory"),
        ("def f():\n    from absent_a import b", "absent_a is not installed: pip install absent_a"),
        ("try:\n    import absent_a\nexcept ImportError:\n    pass", ""),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import absent_a", ""),
        ("from . import sibling", "it imports . from beside it, but stands alone: make a package of the two"),
        ("import beside", "it imports beside from beside it, but stands alone: make a package of the two"),
    ],
)
def test_what_is_missing_is_one_line(folder: Path, extra: str, unavailable: str) -> None:
    (folder / "mine.py").write_text(RULE.format(name="mine", extra=extra))
    (folder / "beside.py").touch()
    assert discovery.find("rule", "mine").unavailable == unavailable
    code, output = listed()
    assert code == 0
    (after,) = re.findall(r"^rule +mine .*\n(.*)", output, re.MULTILINE)
    assert after.strip() == f"unavailable: {unavailable}" if unavailable else "unavailable" not in after


def test_a_file_that_is_not_python_is_named_and_the_others_are_listed(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\ndef (:\n")
    code, output = listed()
    assert code == 1
    assert f"Error: {folder}/broken.py, line 2: not Python" in output and "faster_rcnn" in output


def test_a_name_that_shadows_a_shipped_one_is_refused(folder: Path) -> None:
    (folder / "mine.py").write_text(RULE.format(name="dof", extra=""))
    message = r"two rule plugins are named 'dof': plugins/mine.py:8 and .*/plugins/rules.py:\d+\. Rename one of them"
    with pytest.raises(UserError, match=message):
        discovery.discover("rule")
    code, output = listed()
    assert code == 1 and "two rule plugins are named 'dof'" in output and "participation" in output


def test_further_folders_come_from_the_configuration(folder: Path) -> None:
    lab = folder.parent / "lab"
    lab.mkdir()
    (lab / "mine.py").write_text(RULE.format(name="mine", extra=""))
    configuration = folder.parent / "experiment.yaml"
    configuration.write_text("plugins: [lab]\n")
    assert "mine" not in discovery.discover("rule")
    assert " lab/mine.py:8 " in listed("--config", str(configuration))[1]
    assert discovery.find("rule", "mine").file == lab / "mine.py"
    for wrong, message in (
        ("plugins: [absent]", "plugins: 'absent' is not a folder"),
        ("plugins: no", "plugins is False; expected"),
    ):
        configuration.write_text(wrong)
        assert message in listed("--config", str(configuration))[1]


def test_an_edit_changes_the_version(folder: Path) -> None:
    (folder / "mine.py").write_text(RULE.format(name="mine", extra=""))
    before = discovery.find("rule", "mine").version
    (folder / "mine.py").write_text(RULE.format(name="mine", extra="# edited"))
    assert discovery.find("rule", "mine").version != before


def test_show_prints_every_option(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from typing import Annotated, Literal\nfrom pydantic import Field, FilePath\n"
        "from eigendet.plugins import Options, dataset\n\n\n"
        "class Mine(Options):\n"
        "    file: FilePath = Field(description='what to read')\n"
        "    split: Literal['train', 'val'] = 'train'\n"
        "    sizes: list[Annotated[int, Field(gt=0)]] | None = None\n\n\n"
        "@dataset\ndef mine(*, options: Mine):\n    '''My data.'''\n    return options.split\n"
    )
    code, output = listed("show", "mine")
    rows = [line.split(maxsplit=3) for line in output.splitlines()[4:]]
    assert code == 0 and "My data." in output
    assert rows[1] == ["file", "file", "(required)", "what to read"]
    assert "split   train | val                 train" in output
    assert "sizes   list of integer > 0 | null  null" in output
    assert "unknown plugin 'min'. Did you mean 'mine'?" in listed("show", "min")[1]
    assert "It has no options." in listed("show", "participation")[1]


@pytest.mark.parametrize("kind", ["rule", "dataset", "backbone"])
def test_what_new_writes_keeps_the_contract(folder: Path, kind: discovery.Kind) -> None:
    code, output = listed("new", kind, "mine")
    assert code == 0 and output.splitlines()[:2] == ["plugins/mine.py", "plugins/test_mine.py"]
    code, output = listed("check", "mine")
    lines = output.splitlines()
    assert code == 0 and lines[0].startswith(f"{kind} plugin 'mine' (plugins/mine.py:")
    assert len(lines) > 3 and all(line.startswith("  yes  ") for line in lines[1:])
    message = f"there is a {kind} plugin 'mine' already, plugins/mine.py"
    assert message in listed("new", kind, "mine")[1]


def test_check_says_which_promise_is_broken(folder: Path) -> None:
    plugin_commands.write_example("rule", "mine", folder)
    file = folder / "mine.py"
    file.write_text(file.read_text().replace("share * values.mean()", "share"))
    code, output = listed("check", "mine")
    assert code == 1 and "  yes  a dimension is between one and all channels" in output
    assert "  no   units do not matter: rule plugin 'mine' (plugins/mine.py:14): gives [0.0, " in output
    plugin_commands.write_example("rule", "other", folder)
    file = folder / "other.py"
    file.write_text(file.read_text().replace("    return ", "    return 1 / 0 + "))
    assert "ZeroDivisionError" in listed("check", "other")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "rule", "Mine"], "'Mine' cannot be the name of a plugin"),
        (["new", "rule", "dof"], "there is a rule plugin 'dof' already"),
        (["check", "dof", "--options", "scale: 0"], "dof.scale: got 0; input should be greater than 0"),
        (["new", "rule", "lambda"], "'lambda' cannot be the name of a plugin"),
        (["new", "rule", "sum"], "'sum' cannot be the name of a plugin"),
        (["new", "rule", "np"], "'np' stands for something else in the example"),
        (["check", "dof", "--options", "scale: ["], "--options: got 'scale: ['; expected keys and values"),
        (["check", "dof", "--options", "plugin: ratio"], "--options: got 'plugin: ratio'; expected keys and values"),
        (["check", "dof", "--options", "18: 3"], "--options: got '18: 3'; expected keys and values"),
        (["check", "nothing"], "unknown plugin 'nothing'"),
    ],
)
def test_a_mistake_is_one_message(folder: Path, arguments: list[str], message: str) -> None:
    code, output = listed(*arguments)
    assert code == 1 and message in output


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("def mine(values): ...", "plugins/mine.py has 'mine', but not as a function marked with @rule"),
        ("@rule\nasync def mine(values): ...", "but not as a function marked with @rule"),
        ("@rule\nclass mine: ...", "but not as a function marked with @rule"),
        ("@rule\ndef mine(): ...", "takes (); expected (values, *), and options after the star"),
        ("@rule\ndef mine(values, share=0.1): ...", "takes (values, share); expected (values, *)"),
        ("@rule\ndef mine(values, *, share): ...", "the option 'share' has no annotation"),
        ("@rule\ndef mine(values, *, plugin: str = 'a'): ...", "the option 'plugin' is a key of every rule already"),
        (
            "@rule\ndef mine(values, *, own: Own): ...",
            "takes own; a class of options stands alone, and is named `options`",
        ),
        ("@rule\ndef mine(values, *, options: Own, other: int = 2): ...", "takes options, other; a class of options"),
        ("import sys\nsys.exit(0)\n@rule\ndef mine(values): ...", "cannot be loaded at line 8: SystemExit: 0"),
        ("@rule\ndef mine(values):\n    raise SystemExit(0)", "fails at line 9: SystemExit: 0"),
    ],
)
def test_a_plugin_that_could_never_work_is_named(folder: Path, marked: str, message: str) -> None:
    head = "from eigendet.plugins import Options, rule\n\n\nclass Own(Options): ...\n\n\n"
    (folder / "mine.py").write_text(f"{head}{marked}\n")
    with pytest.raises(UserError) as raised:
        plugins.bind("rule", PluginChoice(plugin="mine"))(np.ones(3))
    assert message in str(raised.value)


@pytest.mark.parametrize("key", ["width", "pretrained"])
def test_an_option_that_every_backbone_has_cannot_be_a_plugins_own(folder: Path, key: str) -> None:
    (folder / "mine.py").write_text(
        f"from eigendet.plugins import backbone\n\n\n@backbone\ndef mine(*, {key}: str = 'a'): ...\n"
    )
    with pytest.raises(UserError, match=f"the option '{key}' is a key of every backbone already; rename it"):
        plugins.bind("backbone", PluginChoice(plugin="mine"))
