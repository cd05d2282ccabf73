"""Post-training quantization of a given state dict: python -m qexp.evaluate checkpoint=FILE bits=2,4,8 -m."""

import sys

from qexp.pipeline.entry import main

if __name__ == "__main__":
    sys.exit(main("evaluate", "evaluate"))
