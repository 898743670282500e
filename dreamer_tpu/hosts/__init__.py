"""Hosts of a run: joining, heartbeats, exchange, preemption, intervals."""
