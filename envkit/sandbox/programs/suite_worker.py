"""The program that runs a pytest suite inside a sandbox; run as ``python -P -S -c SOURCE``.

    stdin   {"packages": PATH, "tests": [PATH or test id, ...], "token": TEXT}
    stdout  one line, {"token": TEXT, "outcomes": {TEST ID: "passed" or another word, ...}}

The candidate's code runs in this process and can forge any output. What the host believes of it is written in
`envkit.environments.code_editor.graders.suite`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself would take longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Run the suite and report."""
    import json
    import os
    import sys

    job = json.load(sys.stdin)
    # The report keeps a private channel; what tests and candidate print goes to stderr.
    sink = os.dup(1)
    os.dup2(2, 1)
    sys.path += [job["packages"], os.getcwd()]
    import pytest

    outcomes: dict[str, str] = {}

    class Recorder:
        """Records the worst outcome among the phases of each test."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.outcome != "passed":
                outcomes[report.nodeid] = "error" if report.when != "call" else report.outcome
            elif report.when == "call":
                outcomes.setdefault(report.nodeid, "passed")

    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:junitxml", "--import-mode=importlib"]
    pytest.main([*options, "--rootdir=.", *job["tests"]], plugins=[Recorder()])
    os.write(sink, json.dumps({"token": job["token"], "outcomes": outcomes}).encode() + b"\n")


if __name__ == "__main__":
    main()
