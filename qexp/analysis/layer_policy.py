"""Policies that give each layer a width of its own: as settings of a job, as a file, and the command that takes the file."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from qexp.analysis.results import Allocation
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


def policy_text(policy: PolicySettings, allocation: Allocation) -> str:
    """The policy as a file for Hydra's group `policy`.

    Args:
        policy: of the exact choice.
        allocation: named in the file's comments.
    """
    measure = allocation.choices[0].measure
    lines = [f"# Bits per layer for {allocation.subject}, {allocation.label}: {allocation.budget}, least summed {measure}."]
    lines += [f"# {allocation.use}", "defaults:", "  - _base", "  - _self_", "name: rules", "rules:"]
    for rule in policy.rules or ():
        role = "" if rule.role == "weight" else f", role: {rule.role}"
        lines.append(f'  - {{match: "{rule.match}", bits: {rule.bits}{role}}}')
    return "\n".join(lines) + "\n"


def command_with(command: str, folder: Path) -> str:
    """The command that scores the policy of a folder, from the command that wrote it.

    Args:
        command: of `task=allocate`, as typed.
        folder: where the policy was written.

    >>> command_with("python -m qexp.analyze task=allocate checkpoint=a.pt bits=4 analyze.average_bits=4", Path("out"))
    'python -m qexp.evaluate --config-dir=out policy=mixed checkpoint=a.pt'
    """
    words = shlex.split(command)[3:]
    left_out = ("task=", "analyze.", "policy=", "policy.", "bits=")
    arguments = [word for word in words if not word.startswith(left_out)]
    # An experiment's file may name the task.
    arguments += ["task=null"] if any(word.startswith("experiment=") for word in arguments) else []
    return shlex.join(["python", "-m", "qexp.evaluate", f"--config-dir={folder}", f"policy={POLICY}", *arguments])
