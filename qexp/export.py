"""Real integers from a given state dict, run by real runtimes: python -m qexp.export checkpoint=FILE bits=4,8 -m."""

import sys

from qexp.sweep.main import run_command_line


def main() -> int:
    """Run one command line; returns the exit code."""
    return run_command_line("export", "export")


if __name__ == "__main__":
    sys.exit(main())
