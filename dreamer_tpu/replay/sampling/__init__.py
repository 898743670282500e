"""Sequence sampling: uniform, by priority, by recency, and mixtures."""
