"""A real browser for tests of pages: no network but this machine, a console that is heard, axe at hand."""

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
#: What keeps a page from its readers; lesser findings are advice.
GRAVE = ("serious", "critical")


@contextmanager
def browser() -> Generator[Browser]:
    """Headless Chromium. People may have none; the project's own checks always have.

    Not for the length of a session: while it is open, this thread can run no other event loop.
    """
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        missing = f"no browser: none of {', '.join(NAMES)} is on PATH; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # Names are not even looked up, whatever asks.
    offline = f"--host-resolver-rules=MAP * ~NOTFOUND, {', '.join(f'EXCLUDE {host}' for host in LOOPBACK)}"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=[offline])
        try:
            yield launched
        finally:
            launched.close()


@dataclass(slots=True)
class Watched:
    """A page and what it did that it should not.

    Args:
        page: Playwright's.
        complaints: console warnings and errors, and uncaught exceptions.
        outside: addresses beyond this machine that it asked for; none was answered.
    """

    page: Page
    complaints: list[str] = field(default_factory=list[str])
    outside: list[str] = field(default_factory=list[str])

    def is_quiet(self) -> bool:
        """Whether there was nothing to complain of; the assertion's message is the page itself."""
        return not self.complaints and not self.outside

    def violations(self) -> list[str]:
        """What axe finds grave on the page as it stands, one line each."""
        # Evaluated through the debugger, so that the page's own policy against scripts stays in force.
        self.page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found: list[dict[str, Any]] = self.page.evaluate("axe.run().then(found => found.violations)")
        return [
            f"{each['id']} ({each['impact']}): {node['html']} {node['failureSummary']}"
            for each in found
            if each["impact"] in GRAVE
            for node in each["nodes"][:1]
        ]

    def screenshot(self, folder: Path, name: str) -> Path:
        """What is in sight, as ``<name>.png``."""
        path = folder / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@contextmanager
def watched(
    browser: Browser, *, dark: bool = False, width: int = 1280, height: int = 800
) -> Generator[Watched]:
    """A page in a context of its own, as wide and as dark as its reader has it."""
    context = browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
    )
    seen = Watched(context.new_page())

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            seen.complaints.append(message.text)

    def on_request(route: Route, request: Request) -> None:
        address = urlsplit(request.url)
        # A page may be a file, but not ask for others.
        itself = address.scheme == "file" and request.is_navigation_request()
        if itself or address.scheme in ("data", "blob") or address.hostname in LOOPBACK:
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
