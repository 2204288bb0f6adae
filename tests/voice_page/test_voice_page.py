"""The page of calls: that it was built from its sources, and asks nobody else for anything."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = runpy.run_path(str(ROOT / "scripts" / "build-console"))
PAGE: Path = BUILD["VOICE_PAGE"]


def test_it_was_built_from_its_sources() -> None:
    digest = (PAGE / BUILD["DIGEST"]).read_text(encoding="ascii").strip()
    assert digest == BUILD["source_digest"](), "run scripts/build-console and commit what it gives"


def test_it_is_whole_and_its_policy_keeps_it_to_its_own_server() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(names) == 3 and all((PAGE / name).is_file() for name in names)
    found = re.search(r'content="(default-src [^"]+)"', page)
    assert found is not None
    policy = dict(part.strip().partition(" ")[::2] for part in found[1].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self' ws: wss:"
    assert "unsafe" not in found[1]


def test_no_client_of_a_cloud_is_in_it() -> None:
    """pipecat's transports bring one, which loads code from its cloud and reports to it."""
    script = (PAGE / "voice.js").read_text(encoding="utf-8")
    assert not re.search(r"daily\.co|sentry", script, re.IGNORECASE)
    assert len(script) < 400_000
