"""The README's blocks and the page of results show what the committed results hold."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tqindex.bench.report.command import report
from tqindex.bench.report.html import render_html
from tqindex.bench.report.markdown import render_markdown
from tqindex.bench.report.plots import all_plots
from tqindex.bench.report.readme import fill_blocks
from tqindex.bench.report.results import digest, load_results, of_suite
from tqindex.errors import FileFormatError

ROOT = Path(__file__).parent.parent
SAMPLE = Path(__file__).parent / "golden" / "bench"
COMMITTED = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- bench: ([\w-]+) -->", README)


# --- what is committed ---


@pytest.fixture
def committed():
    if not any((COMMITTED / "base").glob("*.json")):
        pytest.skip(f"no results in benchmarks/results/base: made by hand are the README's blocks {', '.join(BLOCKS)}")
    return load_results(COMMITTED / "base")


def test_the_readme_shows_the_committed_results(committed):
    filled = fill_blocks(README, committed, "benchmarks/results/plots")
    assert not filled.missing, f"no results for the README's blocks {', '.join(filled.missing)}: `tqindex bench run`"
    assert filled.text == README, "README.md differs from the committed results: run `make bench-report`"


def test_the_pages_show_the_committed_results(committed):
    pages = {
        "README.md": render_markdown(committed, "plots"),
        "report.html": render_html(committed, COMMITTED / "plots"),
    }
    for name, text in pages.items():
        assert (COMMITTED / name).read_text(encoding="utf-8") == text, f"{name} differs: run `make bench-report`"


def test_the_plots_show_the_committed_results(committed):
    for plot in all_plots(committed):
        for kind in ("svg", "png"):
            content = (COMMITTED / "plots" / f"{plot.name}.{kind}").read_bytes()
            assert digest(plot.results).encode() in content, f"{plot.name}.{kind} differs: run `make bench-report`"


# --- how blocks are filled ---


@pytest.fixture
def results():
    return load_results(SAMPLE)


def test_every_block_is_filled(results):
    filled = fill_blocks(README, results, "somewhere")
    assert filled.missing == ()
    assert len(BLOCKS) >= 5
    for name in BLOCKS:
        (block,) = re.findall(rf"<!-- bench: {name} -->\n(.*?)<!-- end -->", filled.text, flags=re.DOTALL)
        assert "GloVe-100" in block, name
    assert "](somewhere/recall-at-k.svg)" in filled.text


def test_filling_again_changes_nothing_and_results_do(results):
    filled = fill_blocks(README, results, "plots").text
    assert fill_blocks(filled, results, "plots").text == filled
    results[0].row("tqindex-mse", 4)["recall_10"] = [0.123]
    assert fill_blocks(filled, results, "plots").text != filled


def test_text_outside_blocks_stays(results):
    filled = fill_blocks(README, results, "plots").text
    outside = re.compile(r"<!-- bench.*?<!-- end -->", flags=re.DOTALL)
    assert outside.sub("", filled) == outside.sub("", README)


def test_blocks_without_results_are_named_and_stay(results):
    filled = fill_blocks(README, of_suite(results, "recall"), "plots")
    assert set(filled.missing) == set(BLOCKS) - {"recall", "losses"}
    block = r"<!-- bench: search -->.*?<!-- end -->"
    assert re.findall(block, filled.text, re.DOTALL) == re.findall(block, README, re.DOTALL)


@pytest.mark.parametrize("text", ["<!-- bench: recall -->\nno end\n", "<!-- bench: colours -->\n\n<!-- end -->\n"])
def test_broken_blocks_are_refused(results, text):
    with pytest.raises(FileFormatError, match="README: "):
        fill_blocks(text, results, "plots")


# --- the command ---


def test_the_command_writes_the_report_and_the_readme(tmp_path):
    folder = tmp_path / "results" / "base"
    folder.mkdir(parents=True)
    shutil.copy(SAMPLE / "recall-openai-ada002-5k.json", folder)
    readme = tmp_path / "README.md"
    readme.write_text("# A\n\n<!-- bench: recall -->\n\n<!-- end -->\n")
    options = ["--results", tmp_path / "results", "--output", tmp_path / "out", "--readme", readme]
    done = CliRunner().invoke(report, [str(option) for option in options])
    assert done.exit_code == 0, done.output
    assert "](out/plots/recall-at-k.svg)" in readme.read_text()
    for line in done.output.splitlines():
        assert Path(line).exists(), line


def test_the_command_says_which_blocks_have_no_results(tmp_path):
    folder = tmp_path / "results" / "test"
    folder.mkdir(parents=True)
    content = json.loads((SAMPLE / "distortion.json").read_text())
    (folder / "distortion.json").write_text(json.dumps(content))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench: search -->\nby hand\n<!-- end -->\n")
    arguments = ["--results", str(folder.parent), "--size", "test", "--readme", str(readme)]
    done = CliRunner().invoke(report, arguments)
    assert done.exit_code == 0, done.output
    assert "No results for the blocks search" in done.stderr
    assert "by hand" in readme.read_text()
    assert (folder / "README.md").exists()
