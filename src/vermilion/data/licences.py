"""Which licence a file of a source distribution is under: SPDX names, from metadata and licence texts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import PurePosixPath

PERMISSIVE = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "PSF-2.0",
    "Python-2.0", "Unlicense", "Zlib",
)  # fmt: skip
UNKNOWN = "unknown"

_CLASSIFIERS = {
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "ISC License (ISCL)": "ISC",
    "The Unlicense (Unlicense)": "Unlicense",
}
_FREE_FORM = {
    "mit": "MIT", "mit license": "MIT", "the mit license": "MIT", "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "3-clause bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause", "bsd-3-clause license": "BSD-3-Clause", "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0", "psf": "PSF-2.0", "isc license": "ISC", "unlicense": "Unlicense",
}  # fmt: skip
_PHRASES = (
    ("AGPL-3.0", r"GNU AFFERO GENERAL PUBLIC"),
    ("LGPL", r"GNU (?:LESSER|LIBRARY) GENERAL PUBLIC"),
    ("GPL", r"GNU GENERAL PUBLIC"),
    ("MPL-2.0", r"MOZILLA PUBLIC LICENSE"),
    ("CC-BY-NC", r"CREATIVE COMMONS ATTRIBUTION-NONCOMMERCIAL"),
    ("Apache-2.0", r"APACHE LICENSE,? (?:V|VERSION )?2\.0"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE"),
    ("Unlicense", r"THIS IS FREE AND UNENCUMBERED SOFTWARE"),
    ("MIT", r"PERMISSION IS HEREBY GRANTED, FREE OF CHARGE"),
    ("ISC", r"PERMISSION TO USE, COPY, MODIFY,? AND(?:/OR)? DISTRIBUTE"),
    ("BSD-3-Clause", r"NEITHER THE NAMES? OF|MAY (?:NOT )?BE USED TO ENDORSE"),
    ("BSD-2-Clause", r"REDISTRIBUTION AND USE IN SOURCE AND BINARY FORMS"),
)
_RESTRICTED = re.compile(r"\bGNU (?:\w+ )?General Public|\b[AL]?GPL(?:v?[23])|Mozilla Public License", re.I)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]+?)\s*(?:\*/|-->|$)", re.M)
_LICENCE_FILE = re.compile(r"(?:un)?licen[cs]e|copying", re.I)
_HEADER_CHARACTERS = 2000


def is_licence_file(path: PurePosixPath) -> bool:
    """Whether a file's name says that it is a licence text."""
    return bool(_LICENCE_FILE.match(path.name)) and path.suffix.lower() in ("", ".txt", ".md", ".rst")


def licence_of_text(text: str) -> str:
    """The licence a text is, by its wording; `UNKNOWN` where none is recognised.

    Phrases of restrictive licences are looked for first: a text with several parts counts as its strictest.
    """
    flat = " ".join(text.upper().split())
    # The Apache licence's heading has a comma and a line break, which `flat` closes up.
    flat = flat.replace("APACHE LICENSE VERSION", "APACHE LICENSE, VERSION")
    return next((name for name, phrase in _PHRASES if re.search(phrase, flat)), UNKNOWN)


def licence_of_metadata(metadata: str, texts: Sequence[str]) -> str:
    """The licence that PKG-INFO states: an SPDX expression, a classifier, free text; else the texts' own."""
    headers = HeaderParser().parsestr(metadata)
    if expression := headers.get("License-Expression"):
        return str(expression).strip()
    named = [
        _CLASSIFIERS.get(line.rsplit(" :: ", 1)[-1], line.rsplit(" :: ", 1)[-1])
        for line in headers.get_all("Classifier", [])
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    if named:
        return " AND ".join(sorted(set(named)))
    free = str(headers.get("License", "")).strip()
    if len(free) < 60 and free:
        return _FREE_FORM.get(free.lower(), free)
    recognised = {licence_of_text(text) for text in [free, *texts]} - {UNKNOWN}
    return " AND ".join(sorted(recognised)) or UNKNOWN


def is_allowed(licence: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be met from `allowed`: all parts of AND, one of OR."""
    flat = licence.replace("(", " ").replace(")", " ")
    if " OR " in flat and " AND " in flat:
        # No precedence is worked out: such a licence counts only when every part is allowed.
        flat = flat.replace(" OR ", " AND ")
    some = [part.strip() in allowed for part in re.split(r" OR | AND ", flat)]
    return any(some) if " OR " in flat else all(some)


def licence_of_file(
    path: PurePosixPath, text: str, project: str, folders: Mapping[PurePosixPath, str]
) -> str:
    """The licence of one file: its own statement, else the nearest licence text above it, else the project's.

    `folders` maps folders below the top one to the licence of the text that lies in them.
    """
    header = text[:_HEADER_CHARACTERS]
    if stated := _SPDX.search(header):
        return stated[1].strip()
    if restricted := _RESTRICTED.search(header):
        return restricted[0]
    return next((folders[folder] for folder in path.parents if folder in folders), project)
