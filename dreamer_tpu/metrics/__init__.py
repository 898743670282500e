"""Metrics of a run: aggregation, timers, and writers."""
