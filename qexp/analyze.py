"""Questions about one checkpoint: python -m qexp.analyze task=profile checkpoint=FILE bits=4."""

import sys

from qexp.pipeline.entry import main

if __name__ == "__main__":
    sys.exit(main("analyze", "analyze"))
