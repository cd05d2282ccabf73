"""Folders and files that a job names: `~` is the user's folder, and what will be written to is tried; torch-free."""

from __future__ import annotations

import os

from qexp.base.places import check_folder, check_names
from qexp.config.root import Config

_READ = ("checkpoint", "calibrate.file", "image", "data.root", "data.classes", "model.weights", "model.pretrained")
PLACES = ("runs_dir", "results_dir", "export.folder", *_READ)


def expand_places(values: dict[str, object]) -> dict[str, object]:
    """The resolved values of a job, with `~` and `~user` expanded where a setting names a place; changed in place.

    Raises:
        UserError: a name that no file system holds.
    """
    for key in PLACES:
        *groups, last = key.split(".")
        owner: object = values
        for name in groups:
            owner = owner.get(name) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and isinstance(owner.get(last), str):
            owner[last] = os.path.expanduser(owner[last])
            check_names(key, owner[last])
    return values


def check_folders(config: Config, verb: str) -> None:
    """Raise for a folder that the job could not write to, before hours of work say so; nothing is left behind.

    Args:
        config: the job.
        verb: of the command.

    Raises:
        UserError: a file, a full disk, no permission, no name.
    """
    if config.plan_only:
        return
    check_folder("runs_dir", config.runs_dir, "trainings")
    check_folder("runs_dir", config.runs_dir, "journal")
    check_folder("results_dir", config.results_dir, config.name)
    if verb == "export" and config.export.folder is not None:
        check_folder("export.folder", config.export.folder, config.name)
