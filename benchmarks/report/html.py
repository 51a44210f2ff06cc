"""The report as one HTML page that needs no other file: styles and figures are in it."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tqindex.bench.report.machine import summary
from tqindex.bench.report.results import Result
from tqindex.bench.report.sections import build_sections

_PACKAGE = "tqindex.bench.report"


def render_html(results: Sequence[Result], plots: Path) -> str:
    """Return the page, with the figures that lie in the folder of plots."""
    templates = Environment(
        loader=PackageLoader(_PACKAGE, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = build_sections(results)
    page = templates.get_template("page.html.j2").render(
        summary=summary(results),
        sections=sections,
        styles=Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
        figures={plot.name: _inline(plots, plot.name) for section in sections for plot in section.plots},
    )
    return str(page)


def _inline(plots: Path, name: str) -> Markup:
    """Return a figure as an element of the page; its ids get its name, since all ids of a page must differ."""
    svg = (plots / f"{name}.svg").read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", svg)
    return Markup(svg)
