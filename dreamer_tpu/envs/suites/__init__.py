"""One file per environment suite."""
