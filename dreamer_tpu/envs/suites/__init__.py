"""Suites of environments, one module each."""
