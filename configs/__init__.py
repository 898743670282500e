"""Configurations: one file per suite, with all defaults in base.py."""
