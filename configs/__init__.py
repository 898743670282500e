"""Suites, sizes and presets: one file per suite, defaults in base.py."""
