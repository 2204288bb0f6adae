"""Training data: documents are collected, cleaned, split into shards and packed into rows."""
