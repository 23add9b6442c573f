"""Robust aggregation rules and mixers, one family a file."""
