"""Routes for operators and account owners: accounts, adapters, metrics, feedback."""
