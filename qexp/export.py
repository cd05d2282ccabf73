"""Real integers from a given state dict, run by real runtimes: python -m qexp.export checkpoint=FILE bits=4,8 -m."""

import sys

from qexp.pipeline.entry import main

if __name__ == "__main__":
    sys.exit(main("export", "export"))
