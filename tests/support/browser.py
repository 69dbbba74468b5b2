"""A headless Chromium, and pictures of what it shows."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

# As root in a container there is no sandbox to be had; the rest keeps it from talking to anybody but Dagster.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WATCHED = "KAFKA_BACKUP_PICTURES"
"""The environment variable with the folder for pictures, where somebody wants to look at them."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def browser_page(pictures: Path) -> Iterator[Page]:
    """A page of the system's Chromium; `take` puts pictures of it into a folder.

    Raises:
        FileNotFoundError: There is no Chromium: `make chromium`.
    """
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise FileNotFoundError(f"no Chromium here (looked for {', '.join(PROGRAMS)}): make chromium")
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.on("pageerror", lambda error: print(f"error in the page: {error}\n{error.stack}"))
            page.set_default_timeout(90_000)
            yield page
        finally:
            browser.close()


def pictures_folder(default: Path) -> Path:
    """Where pictures go."""
    return Path(os.environ.get(WATCHED, default))
