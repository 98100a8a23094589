"""Suites, plans and their execution; names no detector."""
