"""docs/DECODING.md has the decoder table as it is. Run as a program it prints that part of the page."""

from __future__ import annotations

from pathlib import Path

from vermilion.decoding.caches import CACHES
from vermilion.decoding.decoders import DECODERS, Decoder
from vermilion.decoding.knobs import KNOBS
from vermilion.models.families import Traits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "DECODING.md"
KINDS = {
    "AR base": Traits("causal", True, 9, ()),
    "causal": Traits("causal", False, 9, ()),
    "block": Traits("block", False, 9, (), block_grid=4),
    "full": Traits("full", False, 9, ()),
    "uniform noise": Traits("causal", False, -1, (), noise="uniform"),
    "reordered": Traits("causal", False, 9, (), canvas="causal"),
}


def kinds(decoder: Decoder) -> str:
    if decoder.needs:
        return "those with " + " and ".join(f"`{name}`" for name in decoder.needs)
    return ", ".join(name for name, traits in KINDS.items() if decoder.fits(traits))


def table() -> str:
    lines = ["| decoder | what it does | settings | models | from |", "|---|---|---|---|---|"]
    for name, decoder in DECODERS.items():
        settings = ", ".join(f"`{knob}`" for knob in decoder.knobs)
        lines.append(
            f"| `{name}` | {decoder.meaning} | {settings} | {kinds(decoder)} | {decoder.source or 'here'} |"
        )
    lines += ["", "| setting | range | what it is |", "|---|---|---|"]
    for name, knob in KNOBS.items():
        lines.append(f"| `{name}` | {knob.low:g} to {knob.high:g} | {knob.meaning} |")
    lines += ["", "| cache | what it does |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in CACHES.items()]
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "run python -m tests.decoding.test_decoding_page"


if __name__ == "__main__":
    print(table())
