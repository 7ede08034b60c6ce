"""A real browser for tests of pages, offline except for this machine, with its console recorded and axe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
LOOPBACK = ("127.0.0.1", "localhost")
#: Impacts of axe findings that fail a test; lesser findings are advice.
SEVERE = ("serious", "critical")


@contextmanager
def browser() -> Generator[Browser]:
    """Open headless Chromium. Tests are skipped without it, except in CI, where they fail.

    Not a session fixture, because no other event loop can run in this thread while it is open.
    """
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        missing = f"no browser: none of {', '.join(NAMES)} is on PATH; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # No host name is resolved.
    offline = f"--host-resolver-rules=MAP * ~NOTFOUND, {', '.join(f'EXCLUDE {host}' for host in LOOPBACK)}"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[offline])
        try:
            yield launched
        finally:
            launched.close()


@dataclass(slots=True)
class Watched:
    """A page with its recorded warnings, errors and requests to other hosts.

    Args:
        page: the Playwright page.
        complaints: console warnings and errors, and uncaught exceptions.
        outside: requested addresses of other machines; all requests were blocked.
    """

    page: Page
    complaints: list[str] = field(default_factory=list[str])
    outside: list[str] = field(default_factory=list[str])

    def is_quiet(self) -> bool:
        """True if there were no complaints and no outside requests; pytest shows the fields on failure."""
        return not self.complaints and not self.outside

    def violations(self) -> list[str]:
        """Return axe's severe findings on the current page, one line each."""
        # Evaluated through the debugger, so that the page's content security policy stays in force.
        self.page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found: list[dict[str, Any]] = self.page.evaluate("axe.run().then(found => found.violations)")
        return [
            f"{each['id']} ({each['impact']}): {node['html']} {node['failureSummary']}"
            for each in found
            if each["impact"] in SEVERE
            for node in each["nodes"][:1]
        ]

    def screenshot(self, folder: Path, name: str) -> Path:
        """Save the visible part of the page as ``<name>.png``."""
        path = folder / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@contextmanager
def watched(
    browser: Browser, *, dark: bool = False, width: int = 1280, height: int = 800
) -> Generator[Watched]:
    """Open a page in a new browser context with the given size and color scheme."""
    context = browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
    )
    seen = Watched(context.new_page())

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            seen.complaints.append(message.text)

    def on_request(route: Route, request: Request) -> None:
        address = urlsplit(request.url)
        # The page itself may be a file, but it may not request other files.
        is_page = address.scheme == "file" and request.is_navigation_request()
        if is_page or address.scheme in ("data", "blob") or address.hostname in LOOPBACK:
            route.continue_()
        else:
            seen.outside.append(request.url)
            route.abort()

    seen.page.on("console", on_console)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    context.route("**/*", on_request)
    try:
        yield seen
    finally:
        context.close()
