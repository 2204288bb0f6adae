"""Alembic runs this for every migration; `database.py` hands it an open connection."""

from __future__ import annotations

from alembic import context

from vermilion.accounts.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
