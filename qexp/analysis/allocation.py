"""`python -m qexp.analyze task=allocate`: bits per layer under a budget, what they predict, and what became of it.

Layers are measured one at a time on `analyze.split`; widths are chosen so that the losses add up to least. The networks with
these widths are run on the same images, where the sum is compared with the measured loss, and then on `evaluate.split`, as
`qexp.evaluate` does it, where the choice is compared with one width for all layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qexp.analysis.allocation_report import summary, write_allocation
from qexp.analysis.budgets import Budget, budget_of
from qexp.analysis.layer_policy import POLICY, command_with, policy_text, rules
from qexp.analysis.layers import Layers
from qexp.analysis.results import Allocated, Allocation, Sensitivity
from qexp.analysis.scoring import Scored, compare_scored, score, scored
from qexp.analysis.sensitivity import measure_sensitivity
from qexp.analysis.sensitivity_report import write_sensitivity
from qexp.analysis.solvers import Choice, dynamic, exact, greedy
from qexp.base.console import emit, print_main, print_result
from qexp.base.errors import UserError
from qexp.base.progress import phase, track
from qexp.base.text import file_name
from qexp.config.analyze import MEASURES, AnalyzeSettings
from qexp.config.policy import PolicySettings
from qexp.config.root import Config
from qexp.engine.device import pick_device
from qexp.engine.seed import seed_everything
from qexp.engine.trajectory import TrajectoryStore
from qexp.experiment import messages
from qexp.experiment.data_checks import check_allocation_images
from qexp.experiment.job import Prepared
from qexp.experiment.prepare import Preparer
from qexp.reporting.frames.protocol import MixedProtocolsError
from qexp.reporting.report import write_report
from qexp.reporting.tables.allocations import ChoiceComparison
from qexp.tracking.record import Sweep

MAX_BITS = 16
EQUAL = 1e-9  # relative difference of sums that were added in another order


def run(config: Config, sweep: Sweep) -> None:
    """Measure, choose, run what was chosen, write `results/<name>/allocation/<variant>/` and print a summary.

    Args:
        config: of the job.
        sweep: where it comes from.

    Raises:
        UserError: something is wrong with the job; nothing was written.
        JobsFailed: the chosen networks could not be scored.
    """
    preparer = Preparer()
    whole = preparer.prepare([config])
    check_allocation_images(config, whole.bundle)
    layers = Layers(config, pick_device(config.device), preparer)
    budget = budget_of(config, layers.rows, layers.base.plan, whole)
    widths = config.analyze.tried(config.bits, "allocate")
    budget.costs(widths)  # raises where nothing fits
    messages.plan([layers.prepared], num_jobs=1)
    if config.plan_only:
        print_result(started=False)
        return
    seed_everything(config.seed, config.deterministic)
    with TrajectoryStore(config.runs_dir).open(layers.prepared.training).lock():
        measured = measure_sensitivity(layers, widths, command=sweep.command)
        choices, gap, dynamic_check = _choose(layers, measured, budget, widths)
    folder = Path(config.results_dir) / config.name / "allocation" / file_name(f"{measured.label} {budget.name} {budget.value:g}")
    files = write_sensitivity(
        measured, folder / "sensitivity", figures=config.draw_figures
    )  # before the test, whose report shows it
    tested, comparisons = _score_choices(config, sweep, layers, choices, preparer)
    result = Allocation(
        label=measured.label,
        subject=measured.subject,
        checkpoint=measured.checkpoint,
        command=sweep.command,
        images=measured.images,
        budget=budget.words,
        choices=tested,
        comparisons=comparisons,
        gap=gap,
        dynamic_check=dynamic_check,
        scored=f"{config.evaluate.split} images",
        use=command_with(sweep.command, folder),
        notes=(*_notes(config), *measured.notes),
    )
    policy = rules(layers.rows, choices[0].bits)
    about = f"Bits per layer for {result.subject}, {result.label}: {result.budget}, least summed {choices[0].measure}."
    files += write_allocation(result, policy_text(policy, [about, result.use]), POLICY, folder, figures=config.draw_figures)
    with contextlib.suppress(MixedProtocolsError):  # said already by the report of the test, which could not name what chose
        write_report(config.name, runs_dir=config.runs_dir, results_dir=config.results_dir, figures=config.draw_figures)
    print_main(summary(result), "")
    line = f"written: {len(files)} files in {folder}/ (allocation.md, policy/{POLICY}.yaml, sensitivity/)"
    print_result(line, folder=folder, files=files, use=result.use, bits=choices[0].bits)
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
    matrices = {name: _matrix(measured, name, widths) for name in MEASURES}
    losses = matrices[measure]
    if losses is None:
        raise UserError("analyze.measure", measure, allowed="a measure that every layer has", remedy="See sensitivity.md.")
    costs, names = budget.costs(widths), layers.names
    with phase("choosing bits per layer"):
        best, quick = exact(losses, costs, budget.limit), greedy(losses, costs, budget.limit)
        gap = 100 * (quick.loss - best.loss) / best.loss if best.loss > 0 else None
        dynamic_check = _dynamic_check(best, dynamic(losses, costs, budget.limit))
    solutions: list[tuple[str, str, Choice]] = [("exact", measure, best), ("greedy", measure, quick)]
    solutions += [
        ("exact", name, exact(matrix, costs, budget.limit))
        for name, matrix in matrices.items()
        if name != measure and matrix is not None
    ]
    choices = []
    for method, by, solution in track(solutions, "choice", note=lambda one: f"{one[0]} {one[1]}"):
        bits = dict(zip(names, (widths[index] for index in solution.widths), strict=True))
        choices.append(_run_choice(layers, measured, budget, method, by, bits, solution))
    width = _uniform_width(layers.config, budget)
    if width is not None:
        choices.insert(2, _run_choice(layers, measured, budget, "uniform", "", dict.fromkeys(names, width)))
    return choices, gap, dynamic_check


def _matrix(measured: Sensitivity, measure: str, widths: Sequence[int]) -> np.ndarray | None:
    """[layers, widths] of one measure; None where a layer lacks it. Losses that are not finite count as worse than all others."""
    scores = [loss.score(measure) for loss in measured.layers]
    if any(score is None for score in scores):
        return None
    values = np.array(scores, dtype=np.float64).reshape(-1, len(widths))
    worst = 10 * np.abs(values[np.isfinite(values)]).max(initial=1.0)
    return np.where(np.isfinite(values), values, worst)


def _dynamic_check(best: Choice, other: Choice | None) -> str:
    """What dynamic programming says of the exact choice, in words."""
    if other is None:
        return "dynamic programming was left out: too many combinations"
    equal = abs(other.loss - best.loss) <= EQUAL * max(abs(best.loss), abs(other.loss))
    return f"dynamic programming finds {'the same sum' if equal else f'another sum, {other.loss:.6g} instead of {best.loss:.6g}'}"


def _uniform_width(config: Config, budget: Budget) -> int | None:
    """The widest width that all layers can have within the budget."""
    for bits in range(MAX_BITS, 0, -1):
        try:
            config.quant.row.check_width(bits)
        except UserError:
            continue
        if sum(budget.cost(row, bits) for row in budget.rows) <= budget.limit:
            return bits
    return None


def _run_choice(
    layers: Layers,
    measured: Sensitivity,
    budget: Budget,
    method: str,
    measure: str,
    bits: dict[str, int],
    solution: Choice | None = None,
) -> Allocated:
    """One allocation, run on the images that layers were compared on."""
    variant = layers.variant(rules(layers.rows, bits), activations=True)
    scores = layers.network_scores(variant)
    kl = {(loss.layer, loss.bits): loss.kl for loss in measured.layers}
    parts = [kl[layer_bits] for layer_bits in bits.items() if layer_bits in kl]
    count = sum(row.info.num_elements for row in layers.rows)
    print_main(f"  {method} {measure}: Prec@1 {scores['prec1']:.2f}, KL {scores['kl']:.4g}".replace(" :", ":"))
    emit("record", kind="choice", method=method, measure=measure, prec1=scores["prec1"], kl=scores["kl"], bits=bits)
    return Allocated(
        method=method,
        measure=measure,
        bits=bits,
        cost=budget.total(bits),
        size_bytes=variant.size_bytes,
        average_bits=sum(row.info.num_elements * bits[row.info.name] for row in layers.rows) / count,
        predicted=float(sum(parts)) if len(parts) == len(bits) else None,
        kl=scores["kl"],
        prec1=scores["prec1"],
        delta_prec1=scores["delta_prec1"],
        by_measure=None if solution is None else solution.loss,
    )


def _score_choices(
    config: Config, sweep: Sweep, layers: Layers, choices: Sequence[Allocated], preparer: Preparer
) -> tuple[tuple[Allocated, ...], tuple[ChoiceComparison, ...]]:
    """Score exact, greedy and uniform on `evaluate.split`, recorded and reported as `qexp.evaluate` does, and compare them."""
    tested = [choice for choice in choices if choice.measure in ("", config.analyze.measure)]
    tested.sort(key=lambda choice: choice.method != "uniform")  # equal choices take the first one's name, and this one's is plain
    configs = [_job_of(config, rules(layers.rows, choice.bits), choice) for choice in tested]
    prepared = score(configs, sweep, preparer)
    records = {choice.method: scored(prepared, job) for choice, job in zip(tested, configs, strict=True)}
    choices_scored = [
        replace(choice, label=records[choice.method].label, test_prec1=records[choice.method].prec1)
        if choice in tested
        else choice
        for choice in choices
    ]
    return tuple(choices_scored), tuple(_comparisons(prepared, records))


def _job_of(config: Config, policy: PolicySettings, allocated: Allocated) -> Config:
    """The job of `qexp.evaluate` that scores an allocation; one width for all is set as a user would set it."""
    job = replace(config, analyze=AnalyzeSettings(), task=None)
    if allocated.method == "uniform" and config.policy.name == "uniform":
        return replace(job, bits=next(iter(allocated.bits.values())))
    return replace(job, policy=policy)


def _comparisons(prepared: Prepared, records: Mapping[str, Scored]) -> Iterator[ChoiceComparison]:
    """The exact choice against one width for all, and greedy against exact, where they differ and their predictions are kept."""
    for method, reference in (("exact", "uniform"), ("greedy", "exact")):
        if method not in records or reference not in records:
            continue
        first, second = records[reference], records[method]
        if first.key == second.key or not first.predictions or not second.predictions:
            continue
        comparison = compare_scored(prepared, first, second)
        ends = (comparison.interval.low, comparison.interval.high, comparison.interval.level)
        counts = (comparison.n10, comparison.n01, comparison.disagreement)
        yield ChoiceComparison(method, reference, comparison.n, comparison.difference, *ends, comparison.p_value, *counts)
