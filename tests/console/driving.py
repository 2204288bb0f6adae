"""A service with accounts on the embedded model, and Chromium in front of it, as its user would sit there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from clients.running import running
from vermilion.accounts import database as stores
from vermilion.accounts import organisations
from vermilion.accounts.organisations import NewKey, NewOrganisation

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "console" / "node_modules" / "axe-core" / "axe.min.js"
TRACES = Path(os.environ.get("CONSOLE_TRACES", ROOT / ".console"))
PLAYGROUND = ("chat", "complete", "infill", "edit", "structured", "tools", "race")
SERVICE = ("models", "tuning", "files", "health", "account", "keys", "usage", "invoices")
WIDE, NARROW = (1280, 860), (360, 740)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@dataclass(frozen=True, slots=True)
class ConsoleService:
    """Where it is, and a key that may do everything."""

    url: str
    key: str
    organisation: str

    @property
    def page(self) -> str:
        return f"{self.url}/console"


@contextmanager
def console_service(folder: Path) -> Iterator[ConsoleService]:
    """On the embedded model, with an organisation Acme."""
    where = folder / "accounts.db"
    store = stores.connect(str(where))
    stores.migrate(store)
    acme = organisations.create_organisation(store, NewOrganisation("Acme", "ada@acme.example"))[0]
    organisations.change_organisation(store, acme, budget=5 * 10**12)
    scopes = frozenset(("generate", "jobs", "manage", "operate"))
    secret = organisations.create_key(store, acme, NewKey("operator", scopes))
    store.close()
    settings = (f"serve.accounts.url={where}", f"serve.data_folder={folder / 'data'}")
    with running(folder / "log", settings) as service:
        yield ConsoleService(service.url, secret.text, acme)


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """The system's browser where there is one, else the one that Playwright brings."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """One browser window. Requests to elsewhere and errors of the page are remembered."""

    service: ConsoleService
    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    def go(self, view: str) -> None:
        self.page.goto(f"{self.service.page}#/{view}")
        self.page.locator("h1").wait_for()

    def sign_in(self, key: str = "") -> None:
        self.page.goto(self.service.page)
        self.page.get_by_label("API key").fill(key or self.service.key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.locator(".status.ready").wait_for()

    def click(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def until_answered(self) -> None:
        """Returns when nothing runs any more."""
        self.page.locator(".figures dt", has_text="ended").last.wait_for()
        self.page.get_by_role("button", name="Stop").wait_for(state="detached")

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is shown."""
        found: dict[str, Any] = self.page.evaluate(
            "rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})", _RULES
        )
        return [
            f"{one['id']}: {node['html'][:160]} {json.dumps(node['any'][:1])[:300]}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    def too_wide(self) -> bool:
        """Whether one must scroll sideways to read it."""
        return bool(self.page.evaluate("document.scrollingElement.scrollWidth > innerWidth"))


@contextmanager
def visitor(
    browser: Browser,
    service: ConsoleService,
    size: tuple[int, int] = WIDE,
    theme: str = "light",
    trace: str = "",
) -> Iterator[Visitor]:
    """A window of its own, with axe at hand; `trace` names the file that keeps what happened."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,  # type: ignore[arg-type]
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(120_000)
    # What is added here runs whatever the page's policy says, as a browser's own extensions do.
    context.add_init_script(path=AXE)
    page = context.new_page()
    here = Visitor(service, context, page)
    page.on("console", lambda message: message.type == "error" and here.complaints.append(message.text))
    page.on("pageerror", lambda error: here.complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            re.match(f"{re.escape(service.url)}/|blob:|data:", request.url)
            or here.complaints.append(f"asked elsewhere: {request.url}")
        ),
    )
    if trace:
        context.tracing.start(screenshots=True, snapshots=True)
    try:
        yield here
    finally:
        if trace:
            TRACES.mkdir(parents=True, exist_ok=True)
            context.tracing.stop(path=TRACES / f"{trace}.zip")
        context.close()
