"""The page in a real browser, and the figures as files."""

from __future__ import annotations

import csv
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import Browser, Page

from eigendet.cli import main
from eigendet.report.page import write_page
from tests import chromium
from tests.simulated import compare, simulate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    simulate(folder, seeds=range(3), effect=1.0, heads=1)
    compare(folder)
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.started() as found:
        yield found


@pytest.fixture
def page(browser: Browser, results: Path) -> Iterator[Page]:
    with chromium.opened(browser, results / "report.html") as found:
        yield found


def lines(page: Page) -> list[str]:
    """Paths of the spectra as they are drawn."""
    return page.eval_on_selector_all("#spectrum .mark-line path", "paths => paths.map(path => path.getAttribute('d'))")


@pytest.mark.browser
def test_the_page_draws_every_figure_and_says_what_holds(page: Page) -> None:
    drawn = page.eval_on_selector_all(
        "figure:not([hidden])", "all => all.map(one => [one.id, one.querySelectorAll('svg').length])"
    )
    assert dict(drawn) == {
        "scores-parameters": 1, "scores-macs": 1, "course-a": 1, "course-b": 1, "course-c": 1, "spread-rcnn-on-tiny": 1,
        "spectrum": 1, "losses-loss": 1, "accuracy-steps": 1, "equal-rcnn-on-tiny": 1,
    }  # fmt: skip
    assert "no difference can be established (p = 0.1" in page.inner_text(".findings")
    assert len(lines(page)) == 6


@pytest.mark.browser
def test_the_explorer_follows_its_controls(page: Page) -> None:
    last = lines(page)
    page.focus("#spectrum-snapshot")
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.getElementById('spectrum-steps').textContent.includes('step 0')")
    page.wait_for_function(
        "old => document.querySelector('#spectrum .mark-line path').getAttribute('d') != old", arg=last[0]
    )
    first = lines(page)
    assert len(first) == 6 and first != last
    page.select_option("#spectrum-layer", index=0)
    page.wait_for_function(
        "old => document.querySelector('#spectrum .mark-line path').getAttribute('d') != old", arg=first[0]
    )
    page.uncheck("#spectrum-log")
    page.uncheck("#spectrum-share")
    page.wait_for_function("document.querySelector('#spectrum svg').textContent.includes('index')")
    assert "index / width" not in (page.text_content("#spectrum svg") or "")


@pytest.mark.browser
def test_heat_maps_show_any_quantity_of_any_two_arms(page: Page) -> None:
    options = page.eval_on_selector_all("#course-quantity option", "all => all.map(one => one.value)")
    assert {"dof", "entropy", "noise_share", "cka own start", "jensen_shannon pre-trained", "overlap arms"} <= set(
        options
    )
    for quantity in options:
        page.select_option("#course-quantity", quantity)
        page.wait_for_timeout(60)
        assert page.locator("#course-a").is_hidden() == quantity.endswith(" arms")
    page.select_option("#course-quantity", "entropy")
    page.select_option("#course-second", "finetune")
    page.wait_for_function("document.getElementById('course-c').hidden")


@pytest.mark.browser
def test_layers_that_were_never_pre_trained_have_no_row_beside_those_that_were(page: Page) -> None:
    page.select_option("#course-quantity", "cka pre-trained")
    page.wait_for_function("document.querySelectorAll('#course-b path[aria-label*=layer]').length === 9")
    labels = page.locator("#course-b svg .role-axis-label text").all_text_contents()
    assert [label for label in labels if "layer" in label] == [f"layer{number}.relu" for number in range(3)]
    page.locator("#course-b path[aria-label*=layer]").first.hover()
    page.wait_for_function("document.querySelector('#vg-tooltip-element')?.textContent.includes('images, at least12')")
    page.select_option("#course-quantity", "cka own start")
    page.wait_for_function("document.querySelectorAll('#course-b path[aria-label*=layer]').length === 12")


@pytest.mark.browser
def test_a_quantity_that_no_layer_has_says_so(page: Page) -> None:
    """16 channels are too few for the exponent of a power law."""
    page.select_option("#course-quantity", "power_law_exponent")
    page.wait_for_function("document.getElementById('course-text').textContent.includes('Neither of the two arms')")
    assert page.locator("#course-a path[aria-label*=layer]").count() == 0


@pytest.mark.browser
def test_every_figures_data_can_be_taken_away(page: Page, tmp_path: Path) -> None:
    buttons = page.locator("figure:not([hidden]) button")
    for place in range(buttons.count()):
        page.wait_for_timeout(120)  # a browser allows ten downloads a second
        with page.expect_download() as started:
            buttons.nth(place).click()
        path = tmp_path / started.value.suggested_filename
        started.value.save_as(path)
        if path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            assert rows and all(rows[0])
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert len(list(csv.DictReader((tmp_path / "spectrum.csv").read_text().splitlines()))) == 6 * 16


@pytest.mark.browser
def test_tables_sort_by_what_was_clicked(page: Page) -> None:
    table = page.locator("table.sortable", has_text="Learning rate")
    column = table.locator("th", has_text="AP50")
    for order in ("ascending", "descending"):
        column.locator("button").press("Enter")
        assert column.get_attribute("aria-sort") == order
        found = [float(text) for text in table.locator("tr td:nth-child(6)").all_inner_texts()]
        assert found == sorted(found, reverse=order == "descending") and len(set(found)) > 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1200, 1280])
def test_the_page_fits_a_phone_prints_and_has_a_dark_look(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width >= 1280:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        cut = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth).length"
        assert page.evaluate(cut) == 0
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 21, 21)"
    page.wait_for_function("document.querySelector('#spectrum svg').outerHTML.includes('#d8d8d8')")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".tools").first.is_hidden()


def test_the_page_is_one_file_without_links_to_elsewhere(results: Path) -> None:
    text = (results / "report.html").read_text()
    assert "<script src" not in text and '<link rel="stylesheet' not in text and len(text) < 3e6


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_figures_are_written_as_files(results: Path, tmp_path: Path, suffix: str) -> None:
    arguments = ["figures", str(results), "-o", str(tmp_path), "--format", suffix, "--quantity", "cka own start"]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 0, outcome.output
    files = sorted(tmp_path.iterdir())
    assert [file.stem for file in files] == [
        "accuracy-over-training", "course-cka-own-start-finetune-rcnn-tiny", "course-cka-own-start-scratch-rcnn-tiny",
        "equal-accuracy-rcnn-tiny", "losses-loss",
        "scores-backbone_macs", "scores-backbone_parameters", "spectra-layer3-relu-rcnn-tiny", "spread-rcnn-tiny",
    ]  # fmt: skip
    for file in files:
        if suffix == "png":
            assert min(Image.open(file).size) > 200
        else:
            assert "path" in {node.tag.rpartition("}")[2] for node in ElementTree.parse(file).iter()}
    wrong = CliRunner().invoke(main, ["figures", str(results), "-o", str(tmp_path), "--quantity", "entopy"])
    assert "--quantity: unknown quantity 'entopy'. Did you mean 'entropy'?" in wrong.output


def test_a_page_of_an_incomplete_experiment_says_what_is_missing(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "cut")
    (tmp_path / "cut/comparison/tiny/rcnn/tests.parquet").write_bytes(b"PAR1")
    broken = CliRunner().invoke(main, ["report", str(tmp_path / "cut")])
    assert "tests.parquet: damaged: it is not what was written" in broken.output and isinstance(
        broken.exception, SystemExit
    )
    shutil.rmtree(tmp_path / "cut/comparison")
    shutil.rmtree(tmp_path / "cut/evaluation/scratch")
    write_page(tmp_path / "cut")
    text = (tmp_path / "cut/report.html").read_text()
    assert "Not evaluated yet, and so without a score: scratch/tiny/rcnn/seed_0, scratch/tiny/rcnn/seed_1" in text
    assert "The spectra of rcnn on tiny have not been compared yet." in text
