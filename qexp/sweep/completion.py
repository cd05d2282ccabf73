"""What a shell completes behind `qexp`: the verbs, and behind a verb of Hydra's what Hydra would.

Hydra's own script for shells knows one command without verbs: `eval "$(qexp -sc install=bash)"` has the shell ask
`qexp -sc query=bash`, whatever stands behind `qexp`. So the verb is taken from the line here, and Hydra answers for the rest.
"""

from __future__ import annotations

import os
import sys

from qexp.base.console import print_result
from qexp.base.errors import UserError
from qexp.sweep.help import COMMAND, VERBS

ASKS = ("-sc", "--shell-completion")
ROOTS = {"train": "config", "evaluate": "evaluate", "analyze": "analyze", "export": "export"}  # verb -> its file in conf/


def complete(asked: str) -> None:
    """Answer `qexp -sc ASKED`.

    Args:
        asked: `install=SHELL`, `uninstall=SHELL`, or `query=SHELL`, whose line is the environment's `COMP_LINE`.

    Raises:
        UserError: it is none of these.
    """
    from hydra.errors import HydraException

    from qexp.sweep.compose import compose

    what, _, shell = asked.partition("=")
    if what not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        allowed = "install=SHELL or uninstall=SHELL, of bash, zsh or fish"
        raise UserError("-sc", asked, allowed=allowed, remedy=f'eval "$({COMMAND} -sc install=bash)" is the common one.')
    verb, is_behind, rest = "train", True, ""
    if what == "query":
        line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")[2]
        verb, space, rest = line.lstrip().partition(" ")
        is_behind = bool(space)
    if not is_behind:
        names = [name for name in VERBS if name.startswith(verb)]
        print_result(("\n" if shell == "fish" else " ").join(names), verbs=names)
    elif verb in ROOTS:
        os.environ["COMP_LINE"] = f"{COMMAND} {rest}"
        sys.argv[1:] = [ASKS[0], asked]
        try:
            compose(ROOTS[verb])
        except HydraException:  # of a line that is not typed to its end
            print_result("")
