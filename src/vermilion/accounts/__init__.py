"""Organisations, their keys and limits, and the ledger of what they used. Knows neither HTTP nor torch."""
