"""Train once, evaluate quantized copies of every epoch: python -m qexp.train bits=4,8,16 -m."""

import sys

from qexp.pipeline.entry import main

if __name__ == "__main__":
    sys.exit(main("train", "config"))
