"""Train once, evaluate quantized copies of every epoch: python -m qexp.train bits=4,8,16 -m."""

import sys

from qexp.sweep.main import run_command_line


def main() -> int:
    """Run one command line; returns the exit code."""
    return run_command_line("train", "config")


if __name__ == "__main__":
    sys.exit(main())
