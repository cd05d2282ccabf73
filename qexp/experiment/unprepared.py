"""What is wrong with jobs whose settings are right; torch-free, as is what writes down that a command was refused."""

from __future__ import annotations

from collections.abc import Mapping

from qexp.base.errors import UserError, UserErrors


class Unprepared(UserErrors):
    """What is wrong with some jobs of a sweep, each mistake once.

    Args:
        causes: (number of the group, place in it) of each job that cannot be prepared -> why.
    """

    def __init__(self, causes: Mapping[tuple[int, int], UserError | UserErrors]) -> None:
        self.causes = dict(causes)
        errors = [
            error for cause in self.causes.values() for error in (cause.errors if isinstance(cause, UserErrors) else [cause])
        ]
        super().__init__({str(error): error for error in errors}.values())
