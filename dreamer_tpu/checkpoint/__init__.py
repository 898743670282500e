"""Checkpoints: saving, restoring, retention, and import of public ones."""
