"""Command-line tools: plan, bench, plot, inspect, suites."""
