"""What a line of `--json` may be, as docs/agents.md says it: nothing but these fields, of these types."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter

Number = float | None


class Said(BaseModel):
    """One object: nothing but these fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PlannedVariant(Said):
    variant: str
    variant_key: str
    bits: int
    size_bytes: int
    summary: str
    notes: list[str]


class PlannedTraining(Said):
    training: str
    checkpoint: str | None
    stored: bool | None
    epochs: int | None
    data: str
    model: str
    seed: int
    notes: list[str]
    variants: list[PlannedVariant]


class Plan(Said):
    event: Literal["plan"]
    jobs: int
    trainings: list[PlannedTraining]
    notes: list[str]


class ShownLevel(Said):
    label: str
    at: int | None
    total: int | None
    note: str


class Progress(Said):
    event: Literal["progress"]
    text: str
    levels: list[ShownLevel]
    elapsed_s: float
    eta_s: Number


class Alarm(Said):
    event: Literal["alarm"]
    training: str
    variant: str
    epoch: int
    text: str


class Mistake(Said):
    key: str
    value: str
    allowed: str
    remedy: str


class Error(Said):
    event: Literal["error"]
    kind: str
    message: str
    exit_code: int | None
    wrong: list[Mistake]


class Epoch(Said):
    event: Literal["record"]
    kind: Literal["epoch"]
    training: str
    epoch: int
    train_loss: float
    train_prec1: float
    lr: float
    seconds: float
    images_per_s: float


class Evaluated(Said):
    event: Literal["record"]
    kind: Literal["evaluation"]
    training: str
    variant: str
    variant_key: str
    epoch: int
    seed: int
    bits: int
    mode: str
    split: str
    n: int
    prec1: float
    prec5: float
    loss: Number
    delta_prec1: float
    kl: Number
    logit_sqnr_db: Number
    size_bytes: int
    extra: dict[str, Number]
    alarms: list[str]


class Exported(Said):
    event: Literal["record"]
    kind: Literal["export"]
    training: str
    variant: str
    file: str
    digest: str
    split: str
    n: int
    sizes: dict[str, int]
    rungs: list[dict[str, Any]]
    cost: list[dict[str, Any]]
    alarms: list[str]
    notes: list[str]


class Sent(Said):
    event: Literal["record"]
    kind: Literal["sync"]
    name: str
    rows: int
    uri: str | None


class Layer(BaseModel):
    event: Literal["record"]
    kind: Literal["layer"]
    layer: str
    bits: int
    prec1: float
    delta_prec1: float
    kl: float


class Row(Said):
    training: str
    variant: str
    variant_key: str
    bits: int
    mode: str
    seed: int
    epoch: int
    split: str
    n: int
    prec1: float
    prec5: float
    loss: Number
    kl: Number
    delta_prec1: Number
    ci_low: Number
    ci_high: Number
    p_value: Number
    p_holm: Number
    size_bytes: int
    state: str


class Written(Said):
    event: Literal["result"]
    name: str
    folder: str
    page: str | None
    tables: list[str]
    figures: list[str]
    rows: list[Row]


class Analysed(Said):
    event: Literal["result"]
    folder: str
    files: list[str]


class Estimated(Said):
    event: Literal["result"]
    started: Literal[False]
    seconds: float
    mib: float
    trainings: list[dict[str, Any]]


class Stored(Said):
    event: Literal["result"]
    trainings: list[dict[str, Any]]
    folder: str


class Removed(Said):
    event: Literal["result"]
    removed: list[str]
    folder: str


class Merged(Said):
    event: Literal["result"]
    folder: str
    trainings: int
    evaluations: int
    written: int
    records: dict[str, int]
    left_out: list[str]


class Verified(Said):
    event: Literal["result"]
    name: str
    equal: int
    wrong: list[str]
    left: dict[str, str]


class Checked(Said):
    event: Literal["result"]
    checks: list[dict[str, str]]
    broken: bool


class Copied(Said):
    event: Literal["result"]
    folder: str
    files: int


class Text(Said):
    event: Literal["result"]
    text: str


class PageNamed(Said):
    event: Literal["result"]
    page: str


def tag(event: Mapping[str, Any]) -> str:
    return event["kind"] if event.get("event") == "record" else event.get("event", "none")


UNIONS = {"plan": Plan, "progress": Progress, "alarm": Alarm, "error": Error, "epoch": Epoch, "evaluation": Evaluated}
UNIONS |= {"export": Exported, "sync": Sent, "layer": Layer}


def schema(result):
    """What a line of a verb may be, whose result is of this kind."""
    kinds = UNIONS | {"result": result}
    union: Any = None
    for name, model in kinds.items():
        part = Annotated[model, Tag(name)]
        union = part if union is None else union | part
    return TypeAdapter(Annotated[union, Discriminator(tag)])
