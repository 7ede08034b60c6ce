"""Time building and opening a leaderboard of 5 agents on 2 environments of 300 tasks.

make bench SECTION=leaderboard
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))  # for sample_reports.py and browser.py
sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers" / "servers"))

import sample_reports
from browser import browser, watched

from envkit.measure.leaderboard.data import make_leaderboard
from envkit.measure.leaderboard.page import write_leaderboard
from envkit.measure.report.page import load_reports, write_report
from envkit.runtime.prices import load_prices

ROUNDS = 5
TASKS = 300


def main() -> None:
    """Measure and write ``runs/bench/leaderboard.json``."""
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Path] = []
        for name in ("code-editor", "sql-desk"):
            run = Path(folder) / name
            run.mkdir()
            write_report(sample_reports.report(name, name, TASKS), run)
            runs.append(run)
        built, ready, complaints = [], [], []
        with browser() as launched:
            for _ in range(ROUNDS):
                began = time.perf_counter()
                reports = [report for run in runs for report in load_reports(run)]
                page = write_leaderboard(
                    make_leaderboard(reports, load_prices(), "cpu-2-cores"), Path(folder)
                )
                built.append(time.perf_counter() - began)
                with watched(launched) as watched_page:
                    began = time.perf_counter()
                    watched_page.page.goto(page.as_uri())
                    watched_page.page.get_by_role("button", name="Tasks").first.click()
                    watched_page.page.locator("th[aria-sort=descending]").first.wait_for()
                    ready.append(time.perf_counter() - began)
                    complaints += watched_page.complaints + watched_page.outside
        found = {
            "build_s": round(median(built), 3),
            "interactive_s": round(median(ready), 3),
            "page_kb": page.stat().st_size // 1000,
            "console_errors": len(complaints),
        }
    out = Path("runs/bench/leaderboard.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
