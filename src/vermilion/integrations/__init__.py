"""Editors, agents and clouds that speak to a running service."""
