"""The web console: its files, and signing in to it."""
