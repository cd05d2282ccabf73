"""`python -m qexp.analyze task=allocate`: bits per layer under a budget, what they predict, and what became of it.

Layers are measured one at a time on `analyze.split`; widths are chosen so that the losses add up to least; the networks so made
are run on the same images, where the sum is held against the truth, and then on `evaluate.split`, as `qexp.evaluate` does it,
where the choice is compared with one width for all layers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qexp.analysis.allocation_report import summary, write_allocation
from qexp.analysis.budgets import Budget, budget_of
from qexp.analysis.layers import Layers, rules
from qexp.analysis.results import Against, Allocated, Allocation, Sensitivity
from qexp.analysis.sensitivity import study
from qexp.analysis.sensitivity_report import write_sensitivity
from qexp.analysis.solvers import Choice, dynamic, exact, greedy
from qexp.base.console import print_main
from qexp.base.errors import UserError
from qexp.base.text import file_name
from qexp.config.analyze import MEASURES, AnalyzeSettings
from qexp.config.policy import PolicySettings
from qexp.config.root import Config
from qexp.engine import predictions
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment import messages
from qexp.experiment.data_checks import check_allocation_images
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.experiment.variants import make_variants
from qexp.quant.scheme_table import check_width
from qexp.stats.paired import compare
from qexp.sweep.group import Resources
from qexp.sweep.jobs import JobLog, ask_for
from qexp.sweep.launchers import run_in_turn
from qexp.sweep.run import run_sweep
from qexp.tracking.journal import Journal
from qexp.tracking.record import Sweep

POLICY = "mixed"  # name of the policy's file
MAX_BITS = 16
EQUAL = 1e-9  # relative difference of sums that were added in another order


def run(config: Config, sweep: Sweep) -> None:
    """Measure, choose, run what was chosen, write `results/<name>/allocation/<variant>/` and say what was found.

    Args:
        config: of the job.
        sweep: where it comes from.

    Raises:
        UserError: something is wrong with the job; nothing was written. JobsFailed: the chosen networks could not be scored.
    """
    preparer = Preparer()
    whole = preparer.prepare([config])
    check_allocation_images(config, whole.bundle)
    layers = Layers(config, pick_device(config.device), preparer)
    budget = budget_of(config, layers.rows, layers.base.plan, whole)
    widths = config.analyze.tried(config.bits, "allocate")
    budget.costs(widths)  # which says whether anything fits
    messages.plan([layers.prepared], num_jobs=1)
    if config.plan_only:
        return
    seed_everything(config.seed, config.deterministic)
    with TrajectoryStore(config.runs_dir).open(layers.prepared.training).lock():
        measured = study(layers, widths, command=sweep.command)
        found, gap, checked = _choose(layers, measured, budget, widths)
    folder = Path(config.results_dir) / config.name / "allocation" / file_name(f"{measured.label} {budget.name} {budget.value:g}")
    files = write_sensitivity(measured, folder / "sensitivity")  # before the test, whose report shows it
    tested, against = _test(config, sweep, layers, found, preparer)
    result = Allocation(
        label=measured.label,
        subject=measured.subject,
        checkpoint=measured.checkpoint,
        command=sweep.command,
        images=measured.images,
        budget=budget.words,
        found=tested,
        against=against,
        gap=gap,
        dynamic=checked,
        scored=f"{config.evaluate.split} images",
        use=command_with(sweep.command, folder),
        notes=(*_notes(config), *measured.notes),
    )
    policy = rules(layers.rows, found[0].bits)
    files += write_allocation(result, policy_text(policy, result), POLICY, folder)
    print_main(
        summary(result), "", f"written: {len(files)} files in {folder}/ (allocation.md, policy/{POLICY}.yaml, sensitivity/)"
    )
    print_main("the allocation again, with other settings as you like:", f"  {result.use}")


def _notes(config: Config) -> list[str]:
    bits = config.quant.activation.bits
    if bits is None:
        return []
    return [f"activations at {bits} bits: their cost is in the measured losses of whole networks, not in the predicted sums"]


def _choose(
    layers: Layers, measured: Sensitivity, budget: Budget, widths: Sequence[int]
) -> tuple[list[Allocated], float | None, str]:
    """The allocations, run on the images that layers were compared on; the gap of greedy, and the check of exact."""
    measure = layers.config.analyze.measure
    losses = {name: _matrix(measured, name, widths) for name in MEASURES}
    if losses[measure] is None:
        raise UserError("analyze.measure", measure, allowed="a measure that every layer has", remedy="See sensitivity.md.")
    costs, names = budget.costs(widths), layers.names
    best, quick = (solve(losses[measure], costs, budget.limit) for solve in (exact, greedy))
    gap = 100 * (quick.loss - best.loss) / best.loss if best.loss > 0 else None
    again = dynamic(losses[measure], costs, budget.limit)
    checked = _checked(best, again)
    chosen = [("exact", measure, best), ("greedy", measure, quick)]
    chosen += [
        ("exact", name, exact(matrix, costs, budget.limit))
        for name, matrix in losses.items()
        if name != measure and matrix is not None
    ]
    found = [
        _run(layers, measured, budget, method, by, dict(zip(names, (widths[k] for k in choice.widths), strict=True)), choice)
        for method, by, choice in chosen
    ]
    width = _uniform_width(layers.config, budget)
    if width is not None:
        found.insert(2, _run(layers, measured, budget, "uniform", "", dict.fromkeys(names, width)))
    return found, gap, checked


def _matrix(measured: Sensitivity, measure: str, widths: Sequence[int]) -> np.ndarray | None:
    """[layers, widths] of one measure; None where a layer lacks it. Losses that are not finite count as worse than all others."""
    scores = [each.score(measure) for each in measured.layers]
    if any(score is None for score in scores):
        return None
    values = np.array(scores, dtype=np.float64).reshape(-1, len(widths))
    worst = 10 * np.abs(values[np.isfinite(values)]).max(initial=1.0)
    return np.where(np.isfinite(values), values, worst)


def _checked(best: Choice, again: Choice | None) -> str:
    if again is None:
        return "dynamic programming was left out: too many combinations"
    equal = abs(again.loss - best.loss) <= EQUAL * max(abs(best.loss), abs(again.loss))
    return f"dynamic programming finds {'the same sum' if equal else f'another sum, {again.loss:.6g} instead of {best.loss:.6g}'}"


def _uniform_width(config: Config, budget: Budget) -> int | None:
    """The widest width that all layers can have within the budget."""
    for bits in range(MAX_BITS, 0, -1):
        try:
            check_width(config.quant.name, bits)
        except UserError:
            continue
        if sum(budget.cost(row, bits) for row in budget.rows) <= budget.limit:
            return bits
    return None


def _run(
    layers: Layers,
    measured: Sensitivity,
    budget: Budget,
    method: str,
    measure: str,
    bits: dict[str, int],
    choice: Choice | None = None,
) -> Allocated:
    """One allocation, run on the images that layers were compared on."""
    variant = layers.variant(rules(layers.rows, bits), activations=True)
    scores = layers.together(variant)
    kl = {(each.layer, each.bits): each.kl for each in measured.layers}
    parts = [kl.get(item) for item in bits.items()]
    count = sum(row.info.num_elements for row in layers.rows)
    print_main(f"  {method} {measure}: Prec@1 {scores['prec1']:.2f}, KL {scores['kl']:.4g}".replace(" :", ":"))
    return Allocated(
        method=method,
        measure=measure,
        bits=bits,
        cost=budget.total(bits),
        size_bytes=variant.size_bytes,
        average_bits=sum(row.info.num_elements * bits[row.info.name] for row in layers.rows) / count,
        predicted=None if None in parts else float(sum(parts)),
        kl=scores["kl"],
        prec1=scores["prec1"],
        delta_prec1=scores["delta_prec1"],
        by_measure=None if choice is None else choice.loss,
    )


def _test(
    config: Config, sweep: Sweep, layers: Layers, found: Sequence[Allocated], preparer: Preparer
) -> tuple[tuple[Allocated, ...], tuple[Against, ...]]:
    """Score exact, greedy and uniform on `evaluate.split`, recorded and reported as `qexp.evaluate` does, and compare them."""
    tested = [each for each in found if each.measure in ("", config.analyze.measure)]
    tested.sort(key=lambda each: each.method != "uniform")  # equal choices take the first one's name, and this one's is plain
    configs = [_job(config, rules(layers.rows, each.bits), each) for each in tested]
    asked = ask_for([{key: value for key, value in asdict(job).items() if key != "analyze"} for job in configs])
    with Resources(preparer=preparer) as resources:
        log = JobLog(asked, replace(sweep, verb="evaluate"))
        (prepared,) = run_sweep(configs, log, resources, partial(run_in_turn, resources=resources), typed={})
    kept = {each.method: _record(prepared, one) for each, one in zip(tested, configs, strict=True)}
    scored = [
        replace(each, label=kept[each.method]["variant"], test_prec1=kept[each.method]["prec1"]) if each in tested else each
        for each in found
    ]
    return tuple(scored), tuple(_compared(prepared, kept))


def _job(config: Config, policy: PolicySettings, allocated: Allocated) -> Config:
    """The job of `qexp.evaluate` that scores an allocation; one width for all is said as the user would."""
    job = replace(config, analyze=AnalyzeSettings(), task=None)
    if allocated.method == "uniform" and config.policy.name == "uniform":
        return replace(job, bits=next(iter(allocated.bits.values())))
    return replace(job, policy=policy)


def _record(prepared: Prepared, config: Config) -> dict[str, Any]:
    """What is stored of the variant that a job asks for, by the name that it has here."""
    key = make_variants([config], prepared.tensors, prepared.places)[-1].key
    row = list(Journal(prepared.folder / "variants" / f"{key}.jsonl").rows())[-1]
    return row | {"variant": next(each.label for each in prepared.variants if each.key == key)}


def _compared(prepared: Prepared, kept: Mapping[str, Mapping[str, Any]]) -> Iterator[Against]:
    """The exact choice against one width for all, and greedy against exact, where they differ and their predictions are kept."""
    for method, reference in (("exact", "uniform"), ("greedy", "exact")):
        pair = [kept.get(name) for name in (reference, method)]
        if None in pair or pair[0]["variant_key"] == pair[1]["variant_key"] or not all(row["predictions"] for row in pair):
            continue
        a, b = (predictions.load(prepared.folder / row["predictions"]) for row in pair)
        found = compare(
            a.correct1.numpy(),
            b.correct1.numpy(),
            index_a=a.index.numpy(),
            index_b=b.index.numpy(),
            classes_a=a.top5[:, 0].numpy(),
            classes_b=b.top5[:, 0].numpy(),
        )
        ends = (found.interval.low, found.interval.high, found.interval.level)
        counts = (found.n10, found.n01, found.disagreement)
        yield Against(method, reference, found.n, found.difference, *ends, found.p_value, *counts)


def policy_text(policy: PolicySettings, found: Allocation) -> str:
    """The policy as a file for Hydra's group `policy`."""
    lines = [f"# Bits per layer for {found.subject}, {found.label}: {found.budget}, least summed {found.found[0].measure}."]
    lines += [f"# {found.use}", "defaults:", "  - _base", "  - _self_", "name: rules", "rules:"]
    for rule in policy.rules or ():
        role = "" if rule.role == "weight" else f", role: {rule.role}"
        lines.append(f'  - {{match: "{rule.match}", bits: {rule.bits}{role}}}')
    return "\n".join(lines) + "\n"


def command_with(command: str, folder: Path) -> str:
    """The command that scores the policy of a folder, from the one that made it.

    >>> command_with("python -m qexp.analyze task=allocate checkpoint=a.pt bits=4 analyze.average_bits=4", Path("out"))
    'python -m qexp.evaluate --config-dir=out policy=mixed checkpoint=a.pt'
    """
    words = shlex.split(command)[3:]
    left_out = ("task=", "analyze.", "policy=", "policy.", "bits=")
    kept = [word for word in words if not word.startswith(left_out)]
    # An experiment's file may name the task.
    kept += ["task=null"] if any(word.startswith("experiment=") for word in kept) else []
    return shlex.join(["python", "-m", "qexp.evaluate", f"--config-dir={folder}", f"policy={POLICY}", *kept])
