"""One of the documents studied: python -m qexp.study name=seed_puzzle|scalar|fixed_point [checkpoint=FILE data.root=FOLDER].

seed_puzzle   why document 002's integer results lie where they lie; identities of batch norm, scale and offset
scalar        document 004's scalar quantizer, and what its claims need
fixed_point   document 000's fixed point: its bug and its factor, then several layers, ReLU, integer storage

Keys: name, checkpoint (a state-dict file), model=resnet20, data.root (a tree of image files), data.mean, data.std (ImageNet's),
data.num_calib=1000, num_images=2000, image (a file, for fixed_point), results_dir=results. Without checkpoint and data.root a
small network is trained for a moment on the bundled digits. Exit code 1 where a check fails.
"""

import shlex
import sys
from importlib import import_module
from pathlib import Path

from qexp.base.console import print_main, print_result
from qexp.base.errors import choose
from qexp.base.keyvalue import run_verb
from qexp.base.places import check_folder
from qexp.base.progress import phase
from qexp.config.study import StudySettings

STUDIES = ("seed_puzzle", "scalar", "fixed_point")


def run(settings: StudySettings) -> int:
    """Run a study, print what was expected and measured, write tables and figures; 1 if a check fails."""
    study = import_module(f"qexp.studies.{choose('name', settings.name, STUDIES)}")
    check_folder("results_dir", settings.results_dir, settings.name)
    from qexp.studies.report import format_checks, write_study

    with phase("study", settings.name):
        outcome = study.run(settings)
    command = shlex.join(["python", "-m", "qexp.study", *(_without_folders(text) for text in sys.argv[1:])])
    folder = write_study(settings.name, outcome, command=command, results_dir=Path(settings.results_dir))
    passed = f"{len(outcome.checks) - len(outcome.failed)} of {len(outcome.checks)} checks pass"
    print_main(f"{format_checks(outcome.checks)}\n\n{outcome.headline}\n{outcome.subject}")
    failed = [check.name for check in outcome.failed]
    print_result(f"{passed}; tables and figures: {folder}/", folder=folder, checks=len(outcome.checks), failed=failed)
    return 1 if outcome.failed else 0


def _without_folders(argument: str) -> str:
    """KEY=some/folder/FILE as KEY=FILE: where a file lies on this machine means nothing to a reader."""
    key, equals, value = argument.partition("=")
    return f"{key}={Path(value).name}" if equals and key in ("checkpoint", "data.root", "image", "results_dir") else argument


if __name__ == "__main__":
    sys.exit(run_verb(StudySettings, run, __doc__))
