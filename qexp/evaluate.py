"""Post-training quantization of a given state dict: python -m qexp.evaluate checkpoint=FILE bits=2,4,8 -m."""

import sys

from qexp.sweep.main import run_command_line


def main() -> int:
    """Run one command line; returns the exit code."""
    return run_command_line("evaluate", "evaluate")


if __name__ == "__main__":
    sys.exit(main())
