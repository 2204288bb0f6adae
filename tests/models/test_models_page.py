"""docs/MODELS.md and docs/models/ say what the committed results, the family table and the catalogue say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from vermilion.models import catalog
from vermilion.models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_are_what_the_script_makes_of_the_results() -> None:
    command = [sys.executable, "bench/models_page.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_results_are_of_families_that_there_are() -> None:
    results = json.loads((ROOT / "bench" / "results" / "models.json").read_text(encoding="utf-8"))
    assert results["families"].keys() <= {family.name for family in FAMILIES}
    assert all(count > 0 for count in results["invariances"].values())
    assert any(row["parity_error"] is not None for row in results["families"].values())


def test_every_command_of_the_pages_names_a_model_of_the_catalogue() -> None:
    known = {entry.name for entry in catalog.available()}
    for page in (ROOT / "docs" / "models").glob("*.md"):
        named = re.findall(r"^vermilion serve (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= known, page
