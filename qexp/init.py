"""A copy of the configuration to edit: python -m qexp.init [folder=conf].

It writes every file of values of this version; python -m qexp.train --config-path=FOLDER reads them instead of qexp's own.
To add an experiment or a data set alone, give a folder that holds just those: python -m qexp.train --config-dir=FOLDER.

Keys: folder=conf.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from qexp.base.console import print_result
from qexp.base.errors import UserError
from qexp.base.keyvalue import run_verb
from qexp.base.places import check_folder
from qexp.sweep.compose import conf_dir


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """What `qexp.init` takes.

    Args:
        folder: to write, which must not exist or be empty.
    """

    folder: str = "conf"


def run(settings: InitSettings) -> None:
    """Copy `conf/`, and say how it is used."""
    check_folder("folder", settings.folder, "data")
    folder = Path(settings.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("folder", settings.folder, allowed="a folder that is empty or not there yet")
    try:
        shutil.copytree(conf_dir(), folder, dirs_exist_ok=True)
    except OSError as error:
        raise UserError("folder", settings.folder, allowed="a folder that can be written", remedy=str(error.strerror)) from error
    count = sum(1 for path in folder.rglob("*.yaml"))
    line = f"{count} files in {folder}/; python -m qexp.train --config-path={folder} bits=4,8 -m reads them"
    print_result(line, folder=folder, files=count)


if __name__ == "__main__":
    sys.exit(run_verb(InitSettings, run, __doc__))
