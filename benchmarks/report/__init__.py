"""Reports of benchmark results: Markdown tables, plots, one HTML page, and the README's blocks."""

from pathlib import Path

#: The folder of figures, beside the pages.
PLOTS = "plots"


def write_report(results: Path, output: Path) -> list[Path]:
    """Write README.md, report.html and plots of a folder of result files; return what was written.

    Equal results give equal files, with the same versions of matplotlib.
    """
    from tqindex.bench.report.html import render_html
    from tqindex.bench.report.markdown import render_markdown
    from tqindex.bench.report.plots import all_plots
    from tqindex.bench.report.results import load_results

    loaded = load_results(results)
    output.mkdir(parents=True, exist_ok=True)
    plots = output / PLOTS
    written = [path for plot in all_plots(loaded) for path in plot.save(plots)]
    pages = {"README.md": render_markdown(loaded, PLOTS), "report.html": render_html(loaded, plots)}
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8")
    return [*written, *(output / name for name in pages)]
