"""All commands under one name: qexp VERB KEY=VALUE ..., which is python -m qexp.VERB."""

import runpy
import sys

import qexp
from qexp.base.console import print_main, warn_main
from qexp.base.errors import nearest
from qexp.sweep.help import VERBS


def main() -> int:
    """Run one command line; returns the exit code."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb == "--version":
        print_main(f"qexp {qexp.__version__}")
    elif verb in ("-h", "--help", "help"):
        print_main("usage: qexp VERB [KEY=VALUE ...] [-m]      (or python -m qexp.VERB)", "")
        print_main(*(f"  {name:<11}{meaning}" for name, meaning in VERBS.items()))
        print_main("", "qexp VERB --help says more of each; qexp train --help KEY of a key; qexp --version")
    elif verb not in VERBS:
        warn_main("qexp: nothing was started.", f"  {verb}: there is no such verb. {nearest(verb, VERBS)}")
        warn_main(f"  Known: {', '.join(VERBS)}.")
        return 2
    else:
        sys.argv[1:] = arguments
        runpy.run_module(f"qexp.{verb}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
