"""The marks of Mercury's edit format, which a model that has read them may write: no answer carries any."""

from __future__ import annotations

import re

_TAGS = (
    "code_to_edit",
    "current_file_content",
    "recently_viewed_code_snippets",
    "recently_viewed_code_snippet",
    "edit_diff_history",
    "original_code",
    "update_snippet",
    "updated_code",
)
MARKERS = (
    "<|cursor|>",
    *(f"<|{slash}{tag}|>" for tag in _TAGS for slash in ("", "/")),
    *(f"<|!@#IS_{kind}!@#|>" for kind in ("NEXT_EDIT", "APPLY")),
)


class MarkerFilter:
    """Takes the marks out of one answer, however it is cut into pieces."""

    def __init__(self, source: str) -> None:
        """Marks that stand in `source`, the text that is edited, are text there and may stay."""
        self._markers = tuple(marker for marker in MARKERS if marker not in source)
        self._pattern = re.compile("|".join(map(re.escape, self._markers)) or r"(?!)")
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown of the answer so far."""
        text = self._pattern.sub("", self._held + text)
        start = text.rfind("<")
        begun = start >= 0 and any(marker.startswith(text[start:]) for marker in self._markers)
        shown, self._held = (text[:start], text[start:]) if begun else (text, "")
        return shown

    def finish(self) -> str:
        """What was held back; it has turned out to be no mark."""
        rest, self._held = self._held, ""
        return rest


def without_markers(text: str, source: str) -> str:
    """A whole answer."""
    one = MarkerFilter(source)
    return one.push(text) + one.finish()
