"""Processes of a run: joining, heartbeats, exchange, preemption, clocks."""
