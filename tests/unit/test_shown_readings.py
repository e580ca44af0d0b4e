"""The table of readings on the page, and what is refused of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eigendet import config
from eigendet.errors import UserError
from eigendet.networks import widths_file
from eigendet.report.page import write_page
from eigendet.report.readings import Reading, on_readings, read_readings
from eigendet.report.results import Network
from eigendet.runs import definitions
from eigendet.widths import derivation
from tests.conftest import minimal_experiment
from tests.simulated import simulate

NETWORK = Network("tiny", "rcnn")

ROWS = '''rule,centered,weighting,own,preset,parameters,macs,parameter_share,mac_share,reason
dof at scale 0.1,True,positions,True,,5000,90000,0.5,0.9,
dof at scale 0.1,True,images,False,,5000,90000,0.5,0.9,
ratio at threshold 0.001,False,positions,False,paper,8000,99000,0.8,0.99,
<b>bold</b>,False,images,False,,,,,,"rule plugin fails: <b>, ""quoted"""
'''


def page_of(folder: Path, text: str, **changes: Any) -> str:
    """The page of an experiment with planted spectra and widths and such a table of readings, without its scripts."""
    simulate(folder, seeds=(0,), layers=1, channels=4)
    values = config.load([folder / "config.yaml"]).model_dump(mode="json")
    values["arms"]["derived"] = {}
    for section, changed in changes.items():
        values[section] = values[section] | changed if isinstance(changed, dict) else changed
    experiment = config.parse(values)
    (folder / "config.yaml").write_text(config.dump_yaml(experiment))
    network = definitions.definition_for_widths(experiment, "tiny", "rcnn", heads=False)
    channels, reference = network.reference(64)
    chosen = derivation.describe_widths(network, channels, reference, reference, "dof at scale 0.1")
    plain = experiment.widths.model_dump(mode="json")
    derived = replace(chosen, settings=plain, arm="scratch", dimensions=dict.fromkeys(reference, 4.0),
                      bound=dict.fromkeys(reference, "macs"))  # fmt: skip
    widths_file.write_chosen(folder / "widths/tiny/rcnn/derived.json", derived)
    (folder / "widths/tiny/rcnn/readings.csv").write_text(text)
    write_page(folder)
    return " ".join((folder / "report.html").read_text().partition("<script")[0].split())


def test_the_page_shows_every_row_and_why_one_has_no_widths(tmp_path: Path) -> None:
    page = page_of(tmp_path, ROWS)
    table = page.partition("The same spectra under each reading</h3>")[2].partition("</table>")[0]
    rows = [row.split("</tr>")[0] for row in table.split("<tr")[2:]]
    assert len(rows) == 4 and "&lt;b&gt;bold&lt;/b&gt;" in rows[3]
    assert "this experiment&#39;s</td>" in rows[0] and "centered" in rows[0] and ">0.500</td>" in rows[0]
    assert "left open by the preset “paper”</td>" in rows[2] and ">raw</td>" in rows[2]
    assert "rule plugin fails: &lt;b&gt;, &#34;quoted&#34;</td>" in rows[3] and "<td></td><td></td>" in rows[3]
    assert "of the spectra of scratch at its last snapshot" in table
    assert "its own allocator" not in table and "leave from 0.50 to 0.80." in table


def test_with_the_preset_its_paragraph_points_to_the_table(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"preset": "paper", "covariance": {"weighting": "images"}}
    changes["widths"] = {"rule": "absolute", "centered": False, "allocation": "marginal"}
    page = page_of(tmp_path, ROWS, **changes)
    assert 'here it is absolute, and <a href="#readings">the table of readings</a> shows beside one another' in page
    assert page.count('id="readings"') == 1
    assert "its own allocator is marginal, so its derived widths are not among these" in page


def test_sentences_say_the_range_and_whether_the_weighting_matters() -> None:
    rows = [
        {"rule": "dof", "centered": True, "weighting": weighting, "own": False, "preset": None, "parameters": number,
         "macs": 5, "parameter_share": number / 100, "mac_share": 0.5, "reason": None}
        for weighting, number in (("positions", 40), ("images", 40))
    ]  # fmt: skip
    same = [Reading.model_validate(row) for row in rows]
    assert on_readings(same) == (
        "Of the parameters, these readings leave 0.40. Whether positions or images count alike changes no cost."
    )
    none = dict.fromkeys(("parameters", "macs", "parameter_share", "mac_share")) | {"reason": "it fails"}
    assert on_readings([Reading.model_validate(row | none) for row in rows]) == ""
    assert "changes no cost" not in on_readings([same[0], Reading.model_validate(rows[1] | none)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("\n", "holds no row"),
        (ROWS.splitlines()[0], "holds no row"),
        ("a,b\n1,2\n", "row 1, rule: field required"),
        (ROWS.replace("5000", "many", 1), "row 1, parameters: input should be a valid integer"),
        (ROWS.replace("images", "pixels", 1), "row 2, weighting: input should be 'positions' or 'images'"),
        (ROWS.replace("0.9,", "inf,", 1), "row 1, mac_share: input should be a finite number"),
        (ROWS.replace("\n", ",more\n"), ""),
        (ROWS[:-40], "row 4: value error, expected all costs, or a reason why there are none"),
        ("\udcff", "is not a table"),
        ("\0" * 40, "readings.csv"),
    ],
)
def test_what_is_no_table_of_readings_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "widths/tiny/rcnn/readings.csv"
    assert read_readings(tmp_path, config.parse(minimal_experiment())) == {}
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode(errors="surrogateescape"))
    if not message:
        assert len(read_readings(tmp_path, config.parse(minimal_experiment()))[NETWORK]) == 4
        return
    with pytest.raises(UserError) as error:
        read_readings(tmp_path, config.parse(minimal_experiment()))
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value) and "\n" not in str(error.value)
