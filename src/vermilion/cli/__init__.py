"""The `vermilion` command."""

from vermilion.cli.commands import app, main

__all__ = ["app", "main"]
