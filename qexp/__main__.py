"""All commands under one name: qexp VERB KEY=VALUE ..., which is python -m qexp.VERB."""

import runpy
import sys

import qexp
from qexp.base.console import print_result, report_error, speaking, without_json_flag
from qexp.base.errors import UserError, nearest
from qexp.sweep.completion import ASKS, complete
from qexp.sweep.help import VERBS


def main() -> int:
    """Run one command line; returns the exit code."""
    given, as_json = without_json_flag(sys.argv[1:])
    verb, *arguments = given or ["--help"]
    with speaking(as_json=as_json):
        if verb == "--version":
            print_result(f"qexp {qexp.__version__}", version=qexp.__version__)
        elif verb in ("-h", "--help", "help"):
            lines = ["usage: qexp VERB [KEY=VALUE ...] [-m]      (or python -m qexp.VERB)", ""]
            lines += [f"  {name:<11}{meaning}" for name, meaning in VERBS.items()]
            lines += ["", "qexp VERB --help says more of each; qexp train --help KEY of a key; qexp --version"]
            print_result(*lines, text="\n".join(lines), verbs=VERBS)
        elif verb not in (*VERBS, *ASKS):
            error = f"{verb}: there is no such verb. {nearest(verb, VERBS)}"
            report_error(error, "qexp: nothing was started.", f"  {error}", f"  Known: {', '.join(VERBS)}.", exit_code=2)
            return 2
        elif verb in ASKS:
            return _complete(arguments)
        else:
            sys.argv[1:] = arguments
            runpy.run_module(f"qexp.{verb}", run_name="__main__", alter_sys=True)
    return 0


def _complete(arguments: list[str]) -> int:
    """Answer `qexp -sc ASKED`; returns the exit code."""
    try:
        complete(" ".join(arguments))
    except UserError as error:
        report_error(error, "qexp: nothing was started.", f"  {error}", exit_code=2)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
