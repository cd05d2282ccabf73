"""Policies that give each layer a width of its own: as settings of a job, as a file, and the command that takes the file."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from qexp.base.types import PlanRow
from qexp.config.policy import PolicySettings, RuleSettings

POLICY = "mixed"  # name of the policy's file


def rule_of(row: PlanRow, bits: int) -> RuleSettings:
    """The rule that gives one tensor of a plan a width, and no other tensor.

    Args:
        row: of the tensor in the plan.
        bits: its width.
    """
    plain = row.info.role == "weight" and row.info.kind != "norm"
    return RuleSettings(match=glob.escape(row.info.name), bits=bits, role="weight" if plain else "any")


def rules(layers: Sequence[PlanRow], bits: Mapping[str, int]) -> PolicySettings:
    """The policy that gives layers their widths, and leaves the rest float.

    Args:
        layers: rows of a plan.
        bits: layer -> width; layers that it lacks stay float.
    """
    return PolicySettings(name="rules", rules=[rule_of(row, bits[row.info.name]) for row in layers if row.info.name in bits])


def policy_text(policy: PolicySettings, about: Sequence[str]) -> str:
    """The policy as a file for Hydra's group `policy`.

    Args:
        policy: rules of single layers.
        about: lines of the comment that the file begins with.
    """
    lines = [*(f"# {line}" for line in about), "defaults:", "  - _base", "  - _self_", "name: rules", "rules:"]
    for rule in policy.rules or ():
        role = "" if rule.role == "weight" else f", role: {rule.role}"
        lines.append(f'  - {{match: "{rule.match}", bits: {rule.bits}{role}}}')
    return "\n".join(lines) + "\n"


def command_with(command: str, folder: Path | None, settings: Sequence[str] = (), *, verb: str = "evaluate") -> str:
    """The command that scores what an analysis chose, from the analysis' own.

    Args:
        command: of the analysis, as typed.
        folder: where its policy was written; None where it chose none.
        settings: of what it chose, as they are typed.
        verb: `evaluate` or `export`.

    >>> command_with("python -m qexp.analyze task=allocate checkpoint=a.pt bits=4 analyze.average_bits=4", Path("out"))
    'python -m qexp.evaluate --config-dir=out policy=mixed checkpoint=a.pt'
    >>> command_with("python -m qexp.analyze task=shrink checkpoint=a.pt analyze.max_loss=1", None, ["bits=3"])
    'python -m qexp.evaluate bits=3 checkpoint=a.pt'
    """
    words = shlex.split(command)[3:]
    left_out = ("task=", "analyze.", "policy=", "policy.", "bits=")
    arguments = [word for word in words if not word.startswith(left_out)]
    # An experiment's file may name the task.
    arguments += ["task=null"] if any(word.startswith("experiment=") for word in arguments) else []
    policy = [] if folder is None else [f"--config-dir={folder}", f"policy={POLICY}"]
    return shlex.join(["python", "-m", f"qexp.{verb}", *policy, *settings, *arguments])
