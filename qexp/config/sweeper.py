"""Settings of `hydra/sweeper=optuna`, `hydra.sweeper.*`: which swept values to try, and what makes one better. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from qexp.base.checks import check_range
from qexp.base.errors import UserError, UserErrors, as_user_errors, choose, nearest

OPTUNA = "optuna"  # `name` of the choice; Hydra's own sweeper has none
_PREFIX = "hydra.sweeper."
# Numbers of a stored evaluation -> how a better copy has them.
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "prec1": "maximize",
    "prec5": "maximize",
    "loss": "minimize",
    "kl": "minimize",
    "size_bytes": "minimize",
}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How optuna searches.

    Args:
        trials: copies to try, those of an interrupted search counted.
        batch: trials that are drawn and run together; they share trainings, and learn nothing from one another.
        objectives: of `OBJECTIVES`; with several, what no other trial beats in all of them is the result.
        seed: of the sampler, a tree-structured Parzen estimator (Bergstra et al. 2011).
    """

    trials: int = 20
    batch: int = 4
    objectives: list[str] = field(default_factory=lambda: ["prec1", "size_bytes"])
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("hydra.sweeper.trials", self.trials, 1)
        check_range("hydra.sweeper.batch", self.batch, 1)
        check_range("hydra.sweeper.seed", self.seed, 0, 2**31)
        if not self.objectives or len({*self.objectives}) < len(self.objectives):
            raise UserError("hydra.sweeper.objectives", self.objectives, allowed=f"some of {', '.join(OBJECTIVES)}, each once")
        for name in self.objectives:
            choose("hydra.sweeper.objectives", name, OBJECTIVES)

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """`maximize` or `minimize`, of each objective."""
        return [OBJECTIVES[name] for name in self.objectives]


_HYDRAS = ("name", "_target_", "params", "max_batch_size")  # which Hydra's own sweeper has too


def unknown_search_setting(key: str, value: object) -> UserError | None:
    """What to say of a key of the sweeper that it does not have; None for those that it has, and for others' keys.

    Args:
        key: dotted, `hydra.sweeper.trail`.
        value: as given.
    """
    known = [setting.name for setting in fields(SearchSettings)]
    name = key.removeprefix(_PREFIX).partition(".")[0]
    if not key.startswith(_PREFIX) or name in (*known, *_HYDRAS):
        return None
    return UserError(key, value, allowed=known, remedy=nearest(name, known))


def search_settings(values: Mapping[str, object]) -> SearchSettings:
    """Validate `hydra.sweeper`.

    Raises:
        UserErrors: a key, type or range is wrong.
    """
    unknown = [error for key, value in values.items() if (error := unknown_search_setting(_PREFIX + key, value)) is not None]
    if unknown:
        raise UserErrors(unknown)
    own = {key: value for key, value in values.items() if key not in _HYDRAS}
    try:
        return TypeAdapter(SearchSettings).validate_json(json.dumps(own), strict=True)
    except ValidationError as error:
        raise UserErrors(as_user_errors(error, prefix=_PREFIX)) from None
