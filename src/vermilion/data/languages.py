"""Which files of a project are code, by language."""

from __future__ import annotations

from collections.abc import Collection, Mapping

LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "python": (".py",),
    "javascript": (".js", ".mjs", ".jsx"),
    "typescript": (".ts", ".tsx"),
    "c": (".c", ".h"),
    "c++": (".cc", ".cpp", ".cxx", ".hpp"),
    "rust": (".rs",),
    "shell": (".sh", ".bash"),
}
"""Suffixes of file names, by what a recipe's `languages` may name."""
HASH_COMMENTS = frozenset((*LANGUAGES["python"], *LANGUAGES["shell"]))
"""Suffixes of languages whose comments begin with #; those of the others are C's."""


def suffixes_of(languages: Collection[str]) -> frozenset[str]:
    """Of the files that are code in these languages."""
    return frozenset(suffix for language in languages for suffix in LANGUAGES[language])
