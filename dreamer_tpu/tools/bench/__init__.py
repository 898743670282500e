"""Benchmarks of updates, acting, replay, checkpoints and whole runs."""
