"""Acting in environments, and what became of their episodes."""
