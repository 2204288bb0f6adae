"""Keys of an organisation's managers get the scope `jobs`, which files, batches and fine-tuning have needed
since they left `generate`. Such a key could make itself one with it."""

from __future__ import annotations

from alembic import op

revision = "a002"
down_revision = "a001"


def upgrade() -> None:
    op.execute("UPDATE keys SET scopes = 'generate jobs manage' WHERE scopes = 'generate manage'")
