"""`results/<name>/report.html`: one file that opens offline, light and dark, wide and narrow."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup, escape

from qexp.base.files import write_text_atomic
from qexp.base.table import html_table
from qexp.reporting.frames.comparison import has_qat
from qexp.reporting.frames.names import renamed, short_names
from qexp.reporting.frames.repeats import REPEATED, Repeat, learned_from_images, variants
from qexp.reporting.frames.summary import is_control, is_float
from qexp.reporting.inline_svg import inline
from qexp.reporting.script import read_script
from qexp.reporting.statistics.draws import EXPLAINED as DRAWS_EXPLAINED
from qexp.reporting.statistics.verdict import EXPLAINED, Verdict
from qexp.reporting.tables.exports import EXPLAINED as EXPORTS_EXPLAINED
from qexp.reporting.tables.repeated import MEANS, repeats_title, seeds_display
from qexp.reporting.tables.results import ACROSS_DELTA, display
from qexp.reporting.tables.statistic_cells import interval_text, seeds_explained
from qexp.stats.noninferiority import MARGIN
from qexp.tracking.row_types import SweepRow

FILE = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.jinja")
Section = Literal["results", "layers", "deployment"]


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Args:
        path: its SVG file.
        title: a line above it.
        caption: sentences for the reader.
        section: where it stands.
        folded: shown when asked for, as it is large.
    """

    path: Path
    title: str
    caption: str
    section: Section = "results"
    folded: bool = False


@dataclass(frozen=True)
class Held:
    """Tables and sentences that stand beside the table of results, each as the template shows it.

    Args:
        more: of `asked_for_page`.
        exports: of `exports_for_page`.
        allocations: of `allocations_for_page`.
    """

    more: Sequence[Mapping[str, object]] = ()
    exports: Sequence[Mapping[str, object]] = ()
    allocations: Sequence[Mapping[str, object]] = ()


def write_page(
    name: str,
    folder: Path,
    verdict: Verdict,
    *,
    card: Sequence[tuple[str, str]],
    figures: Sequence[Drawn],
    held: Held = Held(),
    sweeps: Sequence[SweepRow] = (),
) -> Path:
    """Write the page; the same numbers give the same bytes.

    Args:
        name: experiment.
        folder: `results/<name>`.
        verdict: of `compare_variants`.
        card: of `protocol_card`.
        figures: already drawn.
        held: beside the table of results.
        sweeps: of `load_sweeps`.
    """
    table = verdict.table
    rounded, names = display(table, wide=True, metrics=verdict.metrics), short_names(table)
    about_draws = [DRAWS_EXPLAINED] if "num_draws" in verdict.seeds else []
    subjects = "; ".join(f"{row.model} on {row.data}" for row in table[["data", "model"]].drop_duplicates().itertuples())
    environment, script = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True), read_script("page.js")
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        question=_question(table, subjects),
        headline=[] if verdict.warnings else _headline(renamed(table, names), renamed(verdict.seeds, names)),
        protocols=verdict.warnings,
        seeds=html_table(seeds_display(verdict.seeds, table, verdict.metrics)) if len(verdict.seeds) else "",
        repeats_title=repeats_title(verdict.seeds),
        seeds_explained=_emphasized(" ".join([MEANS + seeds_explained(verdict.seeds), *about_draws])),
        sentences=verdict.sentences,
        gaps=verdict.gaps,
        alarms=_alarms(renamed(table, names)),
        card=card,
        caption=rounded.caption,
        against=ACROSS_DELTA if "files" in table else "against the float network",
        table=html_table(rounded.table, _kinds(table)),
        footnotes=rounded.footnotes,
        explained=_emphasized(EXPLAINED),
        digest=verdict.digest,
        own=[row.explained for row in verdict.metrics if not row.always],
        not_again=", ".join(row.title.removesuffix(f" {row.unit}") for row in verdict.metrics if row.stored != "classes"),
        more=held.more,
        exports=held.exports,
        exports_explained=_emphasized(EXPORTS_EXPLAINED),
        allocations=[{**one, "explained": _emphasized(str(one["explained"]))} for one in held.allocations],
        figures=[_figure(number, figure) for number, figure in enumerate(figures)],
        sections=_sections(verdict, figures, held),
        commands=list(dict.fromkeys(sweep["command"] for sweep in sweeps)),
        script=script.text,
        script_digest=script.digest,
    )
    path = folder / FILE
    write_text_atomic(path, text)
    return path


def _question(table: pd.DataFrame, subjects: str) -> str:
    """What the page answers."""
    if "files" in table:
        return f"What does preparing the images of {subjects} in other ways cost, and what quantizing?"
    return f"What does quantizing {subjects} cost{', and what does training with it give back' if has_qat(table) else ''}?"


def _figure(number: int, figure: Drawn) -> dict[str, object]:
    """What the template shows of a figure."""
    svg = inline(figure.path, f"f{number}-", figure.title)
    shown = {"title": figure.title, "section": figure.section, "folded": figure.folded, "anchor": _anchor(number)}
    return {**shown, "caption": _emphasized(figure.caption), "svg": svg}


def _anchor(number: int) -> str:
    """The id of a figure's title."""
    return f"figure-{number + 1}"


def _sections(verdict: Verdict, figures: Sequence[Drawn], held: Held) -> list[dict[str, object]]:
    """The tabs of the page, each with the anchors and titles of what it holds."""

    def drawn(section: Section) -> list[tuple[str, object]]:
        return [(_anchor(number), figure.title) for number, figure in enumerate(figures) if figure.section == section]

    results: list[tuple[str, object]] = [("repeats", repeats_title(verdict.seeds))] if len(verdict.seeds) else []
    results += [("differences", "Which differences are real"), ("table", "Table")]
    results += [(f"more-{number + 1}", table["title"]) for number, table in enumerate(held.more)]
    files = [(f"export-{number + 1}", export["title"]) for number, export in enumerate(held.exports)]
    bits = [(f"allocation-{number + 1}", allocation["title"]) for number, allocation in enumerate(held.allocations)]
    sections = {
        "results": ("Results", results + drawn("results")),
        "layers": ("Layers", bits + drawn("layers")),
        "deployment": ("Deployment", files + drawn("deployment") if held.exports else []),
        "protocol": ("Protocol", [("protocol", "Protocol")]),
    }
    return [{"id": name, "title": title, "contents": held} for name, (title, held) in sections.items() if held]


def _headline(table: pd.DataFrame, seeds: pd.DataFrame) -> list[dict[str, str]]:
    """Numbers to begin with: the float network, and the smallest copy that is shown to lose next to nothing, or what loses least.

    Of repeated seeds or draws these are means and deviations: the best one is no result; of one draw of images it is said. Beside
    quantization-aware trainings the float network alone: what these lose is seen against their control, not their start.
    """
    facts = []
    floats, copies = table[is_float(table)], table[~is_float(table) & ~is_control(table)]
    if len(floats):
        of_float = [variant.part for variant in variants(floats)]
        part = max(of_float, key=lambda part: part["prec1"].mean())
        row, several = part.iloc[0], len(part) > 1
        interval = interval_text(row["prec1_low"], row["prec1_high"], sign="") if "prec1_low" in row else ""
        name = row["variant"] if not has_qat(table) else row["group"] if several else row["label"]
        best = f", the best of {len(of_float)} float networks" if len(of_float) > 1 else ""
        facts.append(
            {
                "value": f"{_mean_and_sd(part['prec1'])} %",
                "what": f"Prec@1 of {name}{best}",
                "more": f"mean +- sd over {part['seed'].nunique()} seeds" if several else f"95 %: {interval}",
            }
        )
    lacking = {_key_but_seed(variant) for variant in variants(copies) if not _loses_little(variant, seeds)}
    holds = [variant for variant in variants(copies) if _key_but_seed(variant) not in lacking]
    if holds and not has_qat(table):
        # Of trainings with draws each it is the one that loses most.
        smallest = min(holds, key=lambda variant: (variant.part["size_bytes"].max(), variant.part["delta_prec1"].mean()))
        row, name = smallest.part.iloc[0], str(smallest.values["variant"])
        loss = f"{_mean_and_sd(smallest.part['delta_prec1'], sign='+')} points"
        more = f"{loss}, {_how_told(smallest)}"
        facts.append({"value": name, "what": "smallest copy shown to lose less than half a point", "more": more})
        if len(floats):
            ratio = floats["size_bytes"].max() / row["size_bytes"]
            facts.append({"value": f"{ratio:.1f} times", "what": f"smaller than the float network is {name}", "more": ""})
    elif not has_qat(table):
        tested = copies[copies["p_value"].notna()] if "p_value" in copies else copies[:0]
        single = [one for one in variants(tested) if one.count == 1]
        if single:
            least = max(single, key=lambda one: float(one.part["delta_prec1"].iloc[0]))
            others = f" comes out best of {len(single)} copies; none" if len(single) > 1 else ""
            what = f"{least.values['variant']}{others} is {'' if others else 'not '}shown to lose less than half a point"
            value = f"{least.part['delta_prec1'].iloc[0]:+.2f} points"
            facts.append({"value": value, "what": what, "more": f"95 %: {_how_told(least)}"})
    return facts


def _key_but_seed(variant: Repeat) -> tuple[Hashable, ...]:
    """What is the same for the draws of every seed of a training."""
    group = str(variant.part["group"].iloc[0])
    return (group, *(variant.values[name] for name in REPEATED if name != "group"))


def _loses_little(variant: Repeat, seeds: pd.DataFrame) -> bool:
    """True where a loss of the margin is excluded: of each seed; of draws in the first one's tests, and over draws and images."""
    if variant.over != "draws" or variant.count == 1:
        return bool(variant.part["non_inferior"].eq(True).all())
    own = seeds[(seeds["variant"] == variant.values["variant"]) & (seeds["group"] == variant.values["group"])]
    own = own[(own["n"] == variant.values["n"]) & (own["split"] == variant.values["split"])]
    return bool(variant.part["non_inferior"].iloc[0] is True and own["delta_low"].gt(-MARGIN).all())


def _how_told(variant: Repeat) -> str:
    """Behind a loss: over what it is a mean, or its interval, and that other images might have calibrated."""
    if variant.count > 1:
        what = "draws of calibration images" if variant.over == "draws" else "seeds, shown of each"
        return f"mean +- sd over {variant.count} {what}"
    row = variant.part.iloc[0]
    one = ", one draw of calibration images" if learned_from_images(variant.part).any() else ""
    return interval_text(row["ci_low"], row["ci_high"]) + one


def _mean_and_sd(values: pd.Series, *, sign: str = "") -> str:
    """`96.20 +- 1.12`; of a single one the value."""
    mean = f"{values.mean():{sign}.2f}"
    return mean if len(values) < 2 else f"{mean} +- {values.std(ddof=1):.2f}"


def _kinds(table: pd.DataFrame) -> list[str]:
    """A class for each row."""
    return [
        "float" if of_float else "control" if control else "copy"
        for of_float, control in zip(is_float(table), is_control(table), strict=True)
    ]


def _alarms(table: pd.DataFrame) -> list[str]:
    """Every alarm with the rows that have it."""
    variants: dict[str, list[str]] = {}
    for variant, alarms in zip(table["variant"], table["alarms"], strict=True):
        for alarm in alarms:
            variants.setdefault(alarm, []).append(variant)
    return [f"{', '.join(dict.fromkeys(names))}: {alarm}" for alarm, names in variants.items()]


def _emphasized(text: str) -> Markup:
    """Emphasis and code of Markdown as HTML."""
    marked = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", marked))
