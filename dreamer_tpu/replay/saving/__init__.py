"""Incremental files of a replay shard."""
