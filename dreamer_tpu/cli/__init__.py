"""The command line: flags, validation, log directory, platform."""
