"""Plots and the HTML page: equal for equal results, whole, and sound in a real browser."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tqindex.bench.report import write_report
from tqindex.bench.report.html import render_html
from tqindex.bench.report.plots import all_plots
from tqindex.bench.report.results import Result, digest, load_results
from tqindex.bench.report.sections import build_sections
from tqindex.bench.report.style import house_style, settle, spread_out

SAMPLE = Path(__file__).parent / "golden" / "bench"
OURS = (0x0B, 0x5C, 0xAD)  # the colour of our scalar codes
TRELLIS = (0x0A, 0x2A, 0x5C)
NAMES = ("recall-at-k", "recall-bytes", "indexing", "batch", "single", "scale", "distortion")


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return load_results(SAMPLE)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    written = write_report(SAMPLE, folder)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.*")) == sorted(
        path.relative_to(folder) for path in written
    )
    return folder


# --- plots ---


def test_every_plot_is_there_as_svg_and_png(report):
    for name in NAMES:
        picture = matplotlib.image.imread(report / "plots" / f"{name}.png")
        assert picture.shape[1] == 1660  # twice the width of a README's column
        blue = np.abs(picture[:, :, :3] - np.array(OURS) / 255).max(axis=2) < 0.02
        assert blue.sum() > 1000, name
        dark = np.abs(picture[:, :, :3] - np.array(TRELLIS) / 255).max(axis=2) < 0.02
        assert (dark.sum() > 1000) == (name not in ("scale", "distortion")), name
        assert (picture[:, :, 3] == 1).all()  # dark pages do not show through
        assert (report / "plots" / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_nothing_is_cut_off(results):
    for plot in all_plots(results):
        with house_style():
            figure = plot.draw(plot.results)
            settle(figure)
            box = figure.get_tightbbox()
        assert box.x0 > 0, plot.name
        assert box.y0 > 0, plot.name
        assert box.x1 < figure.get_figwidth(), plot.name
        assert box.y1 < figure.get_figheight(), plot.name


def test_equal_results_give_equal_files(report, results, tmp_path):
    recall, *_, distortion = all_plots(results)  # dashes, markers, labels; formulas
    for path in recall.save(tmp_path) + distortion.save(tmp_path):
        assert (report / "plots" / path.name).read_bytes() == path.read_bytes(), path.name


def test_plots_name_the_results_that_they_show(report, results):
    for plot in all_plots(results):
        assert f"results {digest(plot.results)}" in (report / "plots" / f"{plot.name}.svg").read_text()
    changed = load_results(SAMPLE)
    changed[0].rows[0]["recall_10"] = [0.1]
    assert digest(changed) != digest(results)


def test_a_single_row_and_missing_times_can_be_drawn(results, tmp_path):
    few = load_results(SAMPLE)
    for result in few:
        result.rows[:] = [row for row in result.rows if row["method"] in ("tqindex-mse", "tqindex-prod")]
        for row in result.rows[1:]:
            row.update({name: None for name in ("batch", "single", "add") if name in row})
    for plot in all_plots(few):
        plot.save(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5], [5]),
        ([5, 5, 5], [5, 6, 7]),
        ([0, 10], [0.5, 9.5]),
        ([9, 9, 9], [7.5, 8.5, 9.5]),
        ([1, 2, 9.2, 9.3], [1, 2, 8.5, 9.5]),
    ],
)
def test_labels_stand_clear_of_each_other(wanted, expected):
    assert spread_out(wanted, 1, 0.5, 9.5) == pytest.approx(expected)


# --- the page ---


class Page(HTMLParser):
    """What a page holds: ids, what each table and figure has, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "xlink:href", "srcset", "data") if name in found]
        if tag in ("table", "figure"):
            self._inside = found["id"]
        self.rows[self._inside] += tag == "tr"
        self.paths[self._inside] += tag == "path"


def check_whole(page: Page, results: list[Result]) -> None:
    sections = build_sections(results)
    tables = [table for section in sections for table in section.tables]
    assert len(tables) > len(results)
    for table in tables:
        assert page.rows[f"table-{table.name}"] == 1 + len(table.lines), table.name
    for name in NAMES:
        assert page.paths[f"figure-{name}"] > 20, name


def test_the_page_has_every_table_and_figure(report, results):
    page = Page((report / "report.html").read_text())
    check_whole(page, results)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []


def test_the_page_fetches_nothing(report):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert {link for link in page.links if not link.startswith(("#", "data:"))} == set()
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_labels_are_escaped(report):
    changed = load_results(SAMPLE)
    changed[-1].rows[0]["label"] = "<script>alert(1)</script>"
    text = render_html(changed, report / "plots")
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, str]]:
    """Return a runner of headless Chromium on a page, that gives back what it printed on stdout and stderr."""
    names = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
    program = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome: `make browser` installs one on Debian; CHROME names one elsewhere")
    profile = tmp_path_factory.mktemp("profile")
    switches = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"),
        *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"),
    ]

    def open_page(path: Path, *more: str) -> tuple[str, str]:
        command = [program, *switches, *more, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return open_page


def console(messages: str) -> list[str]:
    """Return what a page wrote to its console, errors of loading among it."""
    return [line for line in messages.splitlines() if ":CONSOLE" in line]


def test_the_browser_shows_every_table_and_figure(browser, report, results):
    dom, messages = browser(report / "report.html", "--dump-dom")
    check_whole(Page(dom), results)
    assert console(messages) == []


def test_the_browser_paints_the_page(browser, report, tmp_path):
    browser(report / "report.html", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,6000")
    picture = matplotlib.image.imread(tmp_path / "page.png")[:, :, :3]
    assert picture.shape == (6000, 1280, 3)
    blue = np.abs(picture - np.array(OURS) / 255).max(axis=2) < 0.02
    assert blue.sum() > 5000
    assert np.abs(picture[:, -8:] - 1).max() == 0  # nothing runs over the right edge


def test_a_console_error_would_be_seen(browser, tmp_path):
    page = tmp_path / "wrong.html"
    page.write_text("<!doctype html><title>wrong</title><script>throw new Error('seen')</script>")
    assert any("seen" in line for line in console(browser(page, "--dump-dom")[1]))
