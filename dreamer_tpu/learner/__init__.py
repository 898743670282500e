"""The compiled train, report and policy steps."""
