"""The command line: what was typed becomes a resolved request, started, and ended with an exit code."""
