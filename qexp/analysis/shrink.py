"""`python -m qexp.analyze task=shrink`: the smallest network that loses less than a margin.

1. Every way to quantize that the lists make together is a candidate. In the order of their bytes they race against the float
   network on `analyze.split`, block by block, until a sequential test (`qexp.stats.sequential`) says that the loss is below the
   margin, or that it is not. The first that passes is the smallest, and larger ones need no image. So the choice is the one
   that all images and all candidates lead to by this rule, giving up included, at a share of the cost. A candidate that is given
   up might still have passed by gains.
2. Around it bits per layer are searched for: under a budget of bytes `solvers.exact` gives each layer the width so that the
   noise-to-signal ratios of the weights add up to least, which needs no image; budgets are halved between the narrowest widths
   and the smallest network that passed.
3. What was chosen is tested once on `evaluate.split`, at its full n and at a fixed n (`qexp.stats.noninferiority`). This is the
   claim: of many candidates the smallest that passes is a lucky one more often than 5 % of the time, and images that chose do not
   tell. Where the test does not hold, nothing was shown, and no other network is tried on these images.

Rejected: racing all candidates side by side, which spends images on those that a smaller one makes needless; and proxies of
layers that need gradients, which in `results/published/mixed_precision` chose worse than the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qexp.analysis.confirm import confirm
from qexp.analysis.layer_policy import POLICY, command_with, policy_text
from qexp.analysis.race import Race
from qexp.analysis.shrink_mixed import Mixed
from qexp.analysis.shrink_report import points, summary, write_shrunk
from qexp.analysis.shrink_results import Outcome, Raced, Shrunk
from qexp.base.console import emit, print_main, print_result
from qexp.base.errors import UserError
from qexp.base.progress import track
from qexp.base.text import counted, file_name
from qexp.config.analyze import AnalyzeSettings
from qexp.config.correct import CorrectSettings
from qexp.config.root import Config
from qexp.config.search_space import MIXED, Candidate, candidates
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment.prepare import Preparer
from qexp.experiment.variants import Variant
from qexp.quant.scheme_info import PER_BLOCK
from qexp.stats.sequential import Sequential, confidence_sequence, non_inferior
from qexp.sweep.check import check_export
from qexp.tracking.record import Sweep

ALPHA = 0.05  # of saying that a candidate passes, and of saying that it does not


@dataclass(frozen=True)
class _Entry:
    """A candidate that has its plan, and how it did."""

    candidate: Candidate
    variant: Variant
    raced: Raced


def run(config: Config, sweep: Sweep) -> None:
    """Race, refine, confirm, write `results/<name>/shrink/<margin>/` and print a summary.

    Args:
        config: of the job.
        sweep: where it comes from.

    Raises:
        UserError: something is wrong with the job; nothing was written.
        JobsFailed: the network that was chosen could not be scored.
    """
    preparer, listed = Preparer(), candidates(config)
    race = Race(config, [one.config for one in listed], pick_device(config.device), preparer)
    entries = _entries(race, listed)
    sizes = f"{entries[0].raced.size_bytes} to {entries[-1].raced.size_bytes} bytes"
    print_main(f"{counted(len(entries), 'candidate')}, {sizes}, smallest first on {race.images}:")
    listing = [{"label": entry.raced.label, "size_bytes": entry.raced.size_bytes} for entry in entries]
    emit("plan", jobs=1, training=race.prepared.training, candidates=listing, notes=race.prepared.notes)
    print_main(*(f"note: {note}" for note in race.prepared.notes))
    if config.plan_only:
        print_main(*(f"  {entry.raced.size_bytes} bytes  {entry.raced.label}" for entry in entries))
        print_result(started=False)
        return
    seed_everything(config.seed, config.deterministic)
    with TrajectoryStore(config.runs_dir).open(race.prepared.training).lock():
        entries, smallest = _race(race, entries)
        uniform = smallest
        if smallest is not None and MIXED in config.analyze.policies:
            steps = list(_refine(race, smallest))
            entries += steps
            smallest = min([smallest, *(one for one in steps if one.raced.outcome == "passed")], key=_size)
    confirmation = None
    if smallest is not None:
        confirmation = confirm(race, smallest.candidate.config, sweep, preparer, margin=_margin(config), alpha=ALPHA)
    used = sum(entry.raced.n for entry in entries) + race.float_images
    result = Shrunk(
        label=f"less than {points(_margin(config))} lost",
        subject=f"{config.data.shown}, {config.model.name}",
        checkpoint=str(config.checkpoint),
        command=sweep.command,
        images=race.images,
        max_loss=_margin(config),
        float_bytes=race.prepared.variants[0].size_bytes,
        raced=tuple(entry.raced for entry in entries),
        smallest=None if smallest is None else smallest.raced,
        uniform=None if uniform is None else uniform.raced,
        confirmation=confirmation,
        used=used,
        full=(len(listed) + 1) * race.num_images,
        notes=(*_notes(config, race), *race.prepared.notes),
    )
    _write(config, result, smallest)


def _entries(race: Race, listed: Sequence[Candidate]) -> list[_Entry]:
    """The candidates by size; of equal ones in the order of the lists, which begin with what is simple."""
    entries = []
    for one in listed:
        variant = race.variant(one.config)
        entries.append(_Entry(one, variant, _raced(one, variant)))
    return sorted(entries, key=_size)


def _size(entry: _Entry) -> int:
    return entry.raced.size_bytes


def _margin(config: Config) -> float:
    assert config.analyze.max_loss is not None, "checked before"
    return config.analyze.max_loss


def _raced(one: Candidate, variant: Variant, seen: Sequential | None = None, num_images: int = 0) -> Raced:
    """A candidate, and how it did."""
    quant, widths = one.config.quant, None
    bits = float(one.config.bits)
    if one.config.policy.name == "rules":
        widths = {row.info.name: row.spec.bits for row in variant.plan.rows if row.spec is not None}
        elements = {row.info.name: row.info.num_elements for row in variant.plan.rows}
        bits = sum(elements[name] * width for name, width in widths.items()) / sum(elements[name] for name in widths)
    raced = Raced(
        label=variant.label,
        policy=one.config.policy.name if widths is None else MIXED,
        scheme=quant.row.name,
        granularity=quant.weight.granularity if quant.row.block is None else PER_BLOCK,
        corrections=one.corrections,
        bits=bits,
        size_bytes=variant.size_bytes,
        widths=widths,
    )
    if seen is None:
        return raced
    verdicts: dict[str, Outcome] = {"above": "passed", "below": "failed"}
    outcome = verdicts.get(seen.verdict, "undecided" if seen.n == num_images else "given up")
    return replace(
        raced,
        outcome=outcome,
        n=seen.n,
        n10=seen.n10,
        n01=seen.n01,
        difference=seen.difference,
        interval=confidence_sequence(seen.n10, seen.n01, seen.n, level=1 - 2 * ALPHA),  # its ends agree with the outcome
        p_value=seen.p_above,
    )


def _run(race: Race, one: Candidate, variant: Variant) -> _Entry:
    """Race one candidate, and say how it did."""
    seen = race.run(variant, non_inferior(_margin(race.config), alpha=ALPHA))
    raced = replace(_raced(one, variant, seen, race.num_images), label=race.label(variant))
    print_main(f"  {raced.size_bytes} bytes  {raced.label}: {raced.outcome}, {raced.difference:+.2f} points, n = {raced.n}")
    told = {name: getattr(raced, name) for name in ("label", "size_bytes", "outcome", "difference", "n", "interval", "p_value")}
    emit("record", kind="candidate", **told)
    return _Entry(one, variant, raced)


def _race(race: Race, entries: Sequence[_Entry]) -> tuple[list[_Entry], _Entry | None]:
    """The candidates in their order, raced until one passes, which is the second."""
    done: list[_Entry] = []
    for entry in track(entries, "candidate"):
        done.append(_run(race, entry.candidate, entry.variant))
        if done[-1].raced.outcome == "passed":
            return [*done, *entries[len(done) :]], done[-1]
    return done, None


def _refine(race: Race, smallest: _Entry) -> Iterator[_Entry]:
    """Networks with bits per layer, each once: every step halves the sizes that the smallest that passes may have.

    A size at which nothing passed has nothing smaller that passes either: that is taken for granted.
    """
    mixed = Mixed(race, smallest.candidate)
    low, high, tried = mixed.least, smallest.raced.size_bytes, set[str]()
    while len(tried) < race.config.analyze.steps and high - low > 1:
        middle = (low + high) // 2
        one = mixed.within(middle)
        variant = race.variant(one.config)
        if variant.key not in tried:
            tried.add(variant.key)
            entry = _run(race, one, variant)
            yield entry
            if entry.raced.outcome == "passed":
                high = entry.raced.size_bytes
                continue
        low = middle  # it was tried before, for a smaller size, and did not pass


def _notes(config: Config, race: Race) -> list[str]:
    notes = []
    if config.quant.activation.bits is not None:
        notes.append(
            f"activations at {config.quant.activation.bits} bits in every candidate; they take no bytes of the state dict"
        )
    if race.prepared.bundle.split_sizes["train"]:
        notes.append(f"the {config.analyze.split} images are training images, unless they were set aside when it was trained")
    return notes


def _write(config: Config, result: Shrunk, smallest: _Entry | None) -> None:
    """Write and print; of a network that was chosen also the commands that take it."""
    bits = config.quant.activation.bits
    words = f"max_loss {_margin(config):g}" + (f" A{bits}" if bits is not None else "")
    folder, policy = Path(config.results_dir) / config.name / "shrink" / file_name(words), None
    if smallest is not None:
        one = smallest.candidate.config
        typed, here = _typed(config, one), folder if smallest.raced.widths else None
        result = replace(result, evaluate=command_with(result.command, here, typed))
        try:
            check_export(replace(one, task=None, analyze=AnalyzeSettings()))
        except UserError as error:
            result = replace(result, no_export=str(error))
        else:
            # What qexp.export sets otherwise is taken back.
            activations = "null" if one.quant.activation.bits is None else str(one.quant.activation.bits)
            own = [*_typed(config, one, every=True), f"quant.activation.bits={activations}"]
            typed_keys = {word.split("=")[0] for word in result.command.split()}
            own = [word for word in own if word.split("=")[0] not in typed_keys]
            result = replace(result, export=command_with(result.command, here, own, verb="export"))
        if here is not None:
            about = f"Bits per layer for {result.subject}: {result.label}, {smallest.raced.size_bytes} bytes."
            policy = policy_text(one.policy, [about, result.evaluate])
    files = write_shrunk(result, folder, None if policy is None else (POLICY, policy), figures=config.draw_figures)
    print_main(summary(result), "")
    line, best = f"written: {len(files)} files in {folder}/ (shrink.md, candidates.csv)", result.smallest
    network = None if best is None else {"label": best.label, "size_bytes": best.size_bytes}
    print_result(line, folder=folder, files=files, smallest=network, evaluate=result.evaluate, export=result.export)


def _typed(config: Config, one: Config, *, every: bool = False) -> list[str]:
    """The settings that a candidate has and the job does not, as they are typed.

    Args:
        config: of the job.
        one: of the candidate.
        every: those of corrections that are as in the job too.
    """
    weight = one.quant.weight
    words = [f"quant={one.quant.name}"] + ([f"quant.factory={one.quant.factory}"] if one.quant.factory else [])
    words += [f"quant.weight.granularity={weight.granularity}"] if one.quant.row.block is None else []
    if one.policy.name != "rules":
        words += [f"policy={one.policy.name}", f"bits={one.bits}"]
    off, was, now = asdict(CorrectSettings()), asdict(config.correct), asdict(one.correct)
    switches = [key for key in off if now[key] != was[key] or (every and key == "fold_bn")]
    return words + [f"correct.{key}={str(now[key]).lower()}" for key in switches]
