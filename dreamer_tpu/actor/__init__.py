"""The actor loop and episode statistics."""
