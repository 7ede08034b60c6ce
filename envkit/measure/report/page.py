"""Write a run's report as JSON, Markdown and one self-contained HTML file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from envkit.errors import StoreError
from envkit.measure import number_text
from envkit.measure.report import svg_charts, tables
from envkit.measure.report import text as report_text
from envkit.measure.report.data import ReportData
from envkit.measure.report.summary import Summary, rates_by_operator, summarise
from envkit.measure.visible_text import visible
from envkit.runtime.store import write_atomic

#: Longest ``report.json`` that is read. 5,000 tasks and 10 rows take 12 million characters.
_MAX_CHARACTERS = 2**28


def render(data: ReportData) -> dict[str, bytes]:
    """Render a report's files by name: ``report.json``, ``report.html``, ``report.md``.

    A pure function: equal data gives equal bytes. The HTML needs no network and no script.
    """
    summary = summarise(data)
    page: dict[str, Any] = {
        "data": data,
        "headline": report_text.headline(data, summary),
        "warnings": report_text.warnings(data, summary),
        "method": report_text.method(summary),
        "limits": report_text.limits(data, summary),
        "results": tables.results(data, summary),
        "rewards": tables.rewards(data, summary),
        "differences": tables.differences(summary),
        "operators": tables.operators(data, summary),
        "training": tables.training(data),
        "phases": tables.phases(data),
        "facts": tables.facts(data),
        "config": tables.config(data.config),
        "charts": _charts(data, summary),
    }
    environment = templates()
    pages = {
        name: environment.get_template(f"{name}.j2").render(page) for name in ("report.html", "report.md")
    }
    return {name: text.encode() for name, text in {"report.json": data.to_json(), **pages}.items()}


def write_report(data: ReportData, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the report's three files into ``folder`` and return the path of the HTML.

    Each file appears whole or not at all. Writing the same report again changes nothing.

    Raises:
        StoreError: a different report exists and ``overwrite`` is False, or it cannot be written.
    """
    files = {folder / name: content for name, content in render(data).items()}
    for path, content in files.items():
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is not a file; move it away, then write the report again")
        if not overwrite and path.exists() and path.read_bytes() != content:
            raise StoreError(
                f"{path} is a different report; nothing was written: overwrite it or use another folder"
            )
    for path, content in files.items():
        write_atomic(path, content)
    return folder / "report.html"


def report_folders(run: Path) -> list[Path]:
    """Find the folders with a report: the run's own, or one per environment or seed inside it.

    Raises:
        StoreError: there is no report, or the folder cannot be read.
    """
    folders = sorted(path.parent for depth in range(3) for path in run.glob("*/" * depth + "report.json"))
    if not folders:
        raise StoreError(f"{run}: no report.json there; give the folder of a finished run")
    return folders


def load_reports(run: Path) -> list[ReportData]:
    """Load all reports of a run.

    Raises:
        StoreError: there is no report, or as for `load_report`.
    """
    return [load_report(folder) for folder in report_folders(run)]


def load_report(folder: Path) -> ReportData:
    """Read ``report.json``.

    Raises:
        StoreError: missing, not JSON, or a field is wrong; the message names file and field.
    """
    path = folder / "report.json"
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"more than {_MAX_CHARACTERS:,} characters; this is not a report of envkit")
        return ReportData.from_json(text)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot read {path}: {reason}; give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: {error}; the file is damaged: write it again with --resume of the command that "
            "made the run"
        ) from error


def _charts(data: ReportData, summary: Summary) -> dict[str, Markup]:
    contestants = [(row.name, row.solve_rate.interval) for row in summary.rows if not row.control]
    rows = [
        svg_charts.Bar(i, name, 100 * rate.estimate, 100 * rate.low, 100 * rate.high, number_text.share(rate))
        for i, (name, rate) in enumerate(contestants)
        if rate is not None
    ]
    charts: dict[str, Markup] = {}
    if rows:
        description = "; ".join(f"{bar.name} {bar.label}" for bar in rows)
        charts["results"] = svg_charts.bars("results", "pass@1 on held-out tasks", description, rows)
    if summary.operators:
        # The chart shows pass@1 even if the tables show other ks.
        first = rates_by_operator([row for row in data.rows if row.expected is None])
        grid = [(entry.operator, [100 * rate for rate in entry.rates[0]]) for entry in first]
        description = "One row per kind of task, one marker per agent; the table below has the numbers."
        names = [name for name, _ in contestants]
        charts["operators"] = svg_charts.dots(
            "operators", "pass@1 by kind of task, in percent", description, names, grid
        )
    return charts | curves_of(data)


def curves_of(data: ReportData, prefix: str = "") -> dict[str, Markup]:
    """Draw the training curves, by name. ``prefix`` makes element ids unique if a page has several runs."""
    steps = data.training
    panels = {
        "sft": ("Warm start: loss", [(point.step, point.loss) for point in data.sft]),
        "reward": ("Mean reward", [(point.step, point.reward) for point in steps]),
        "mixed": ("Share of mixed groups", [(point.step, point.mixed_share) for point in steps]),
        "loss": ("Policy loss", [(point.step, point.loss) for point in steps]),
        "speed": ("Tokens per second", [(point.step, point.tokens_per_s) for point in steps]),
    }
    charts: dict[str, Markup] = {}
    for key, (title, curve) in panels.items():
        if points := [(float(step), value) for step, value in curve if math.isfinite(value)]:
            description = "Dots: each step. Line: moving mean."
            charts[key] = svg_charts.line(
                prefix + key, title, description, points, unit_interval=key in ("reward", "mixed")
            )
    return charts


def templates(package: str = "envkit.measure.report") -> jinja2.Environment:
    """Make the Jinja environment for pages (HTML-escaped) and Markdown; both escape invisible characters.

    Args:
        package: holds the templates, beside those of reports, which every page may include.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, ".") for name in dict.fromkeys((package, "envkit.measure.report"))]
        ),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["dollars"] = number_text.dollars
    environment.filters["md"] = _markdown_text
    environment.filters["fence"] = _markdown_fence
    return environment


def _visible(value: object) -> object:
    """Escape invisible characters in every value that a template prints; markup stays markup."""
    if not isinstance(value, str):
        return value
    text = visible(str(value))
    return Markup(text) if isinstance(value, Markup) else text


def _unbroken(text: str) -> str:
    """Forbid line breaks inside an interval and beside a unit."""
    return re.sub(
        r" (?=[%$])|(?<=\$) |(?<=\d) (?=points)|(?<=\d,) (?=[+\N{MINUS SIGN}\d])| (?=\[)", "\u00a0", text
    )


def _markdown_text(text: str) -> str:
    """Escape Markdown markup and join lines to one."""
    return re.sub(r"[\\`*<|~]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(:]", r"\\\g<0>", " ".join(text.split()))


def _markdown_fence(text: str) -> str:
    """Make a code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
