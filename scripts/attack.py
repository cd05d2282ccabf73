"""Thousands of wrong commands, and what each must say: `python scripts/attack.py [every=N] [kinds=[a,b]] [verbs=[a]] [out=FILE]`.

Each key of each command is given values of a wrong type, out of range, null, a list, under a slip of the pen, and typed where it
is not read (`attack_cases.py`); files, places, functions of the user's, damaged stores and words are in `attack_files.py`. Looked
at is the exit code (2, or 0 where the command is right), the message (it names key and value, and what is allowed or a remedy,
in ten lines), that there is no traceback, and that the working folder is as it was. Commands are real processes, forked from one
that has loaded torch; `fresh=true` starts each anew. Prints those that fail and a summary; 1 where more than 2 % fail.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

sys.path.append(str(Path(__file__).parent))

from attack_cases import BASE, JOB, SMALL, Attack, attacks_on_keys
from attack_files import attacks_on_files, make_template

from qexp.base.errors import UserError, UserErrors
from qexp.base.keyvalue import parse

MOST_LINES = 10
NOTHING = "qexp: nothing was started."
Answer = tuple[int | None, str]  # exit code, None where there was no end; what was said
Run = Callable[[Attack], Answer]  # in the working folder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the script takes.

    Args:
        every: only each N-th command, from the first on.
        kinds: only these kinds of mistakes.
        verbs: only these commands.
        fresh: start a Python of its own for each command.
        jobs: how many run at a time.
        limit_s: after which a command counts as hanging.
        memory_gib: that a command may take.
        out: CSV of all commands.
    """

    every: int = 1
    kinds: list[str] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    fresh: bool = False
    jobs: int = 2
    limit_s: int = 600
    memory_gib: int = 6
    out: str = "attack.csv"


def all_attacks(template: Path) -> Iterator[Attack]:
    """Every command; keys first."""
    for verb in BASE:
        yield from attacks_on_keys(verb, None if verb in SMALL else _composed(verb))
    yield from attacks_on_files(template)


def _composed(verb: str) -> dict[str, object]:
    """The values of the right command of a verb."""
    import hydra

    from qexp.sweep.compose import conf_dir
    from qexp.sweep.composition import resolved
    from qexp.sweep.config_store import store_choices

    store_choices()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolved(hydra.compose({"train": "config"}.get(verb, verb), list(BASE[verb])))


def tree(folder: Path) -> dict[str, object]:
    """Everything in a folder: what it is and its content. Python's compiled files of the user's modules are Python's matter."""
    seen: dict[str, object] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in (*folders, *names):
            path = Path(parent, name)
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else os.lstat(path).st_mode
            seen[str(path.relative_to(folder))] = content
    return seen


def judge(attack: Attack, answer: Answer, left: Sequence[str]) -> str:
    """Why a command failed the test; empty where it passed.

    Args:
        attack: the command.
        answer: its exit code and what it said.
        left: paths that are not as they were.
    """
    code, text = answer
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip() != NOTHING]
    if code is None:
        return "no end"
    if "Traceback (most recent call last)" in text:
        return f"traceback: {lines[-1][:150]}"
    if code == 0:
        if attack.want == "refused":
            return "accepted"
        return f"left behind: {left[:3]}" if left and attack.want == "lawful" else ""
    if attack.want == "lawful" and attack.kind == "sweep" and "No job reads it" in text:
        return ""  # which is so for a single value, too
    if attack.want == "lawful":
        return f"refused: {' '.join(lines)[:200]}"
    if code != 2:
        return f"exit code {code}: {' '.join(lines[-3:])[:200]}"
    if left:
        return f"left behind: {left[:3]}"
    return _judge_message(attack, lines)


def _judge_message(attack: Attack, lines: Sequence[str]) -> str:
    said = " ".join(lines)
    if not 1 <= len(lines) <= MOST_LINES:
        return f"{len(lines)} lines of message: {said[:150]}"
    if attack.key not in said:
        return f"does not name {attack.key}: {said[:200]}"
    if attack.value and not any(value[:40] in said for value in attack.value):  # long ones are cut
        return f"does not name {attack.value[0]}: {said[:200]}"
    if "allowed is" not in said and not any(line.rstrip(".").count(". ") or ": " in line for line in lines):
        return f"neither what is allowed nor a remedy: {said[:200]}"
    return ""


class Ground:
    """A working folder that is as it was before each command.

    Args:
        template: what is in it.
        folder: where it is made.
    """

    def __init__(self, template: Path, folder: Path) -> None:
        self.template, self.folder = template, folder
        self._whole = tree(template)
        self._made = False

    def try_one(self, attack: Attack, run: Run) -> str:
        """Why a command failed, in a folder as the template is; empty where it passed."""
        if not self._made:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(self.template, self.folder, symlinks=True)
        before = self._whole
        if attack.damage:
            self._hurt(*attack.damage)
            before = tree(self.folder)
        answer = run(attack)
        after = tree(self.folder)
        self._made = after == self._whole
        left = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        return judge(attack, answer, left)

    def _hurt(self, pattern: str, data: bytes | None) -> None:
        for path in self.folder.glob(pattern):
            path.unlink()
            if data is None:
                path.mkdir()
            else:
                path.write_bytes(data)


def _warm() -> type:
    """The server of warm processes that the tests have."""
    path = Path(__file__).parents[1] / "tests" / "integration" / "warm.py"
    spec = importlib.util.spec_from_file_location("warm", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Warm


def run_fresh(attack: Attack, folder: Path, limit_s: int) -> Answer:
    """Run a command as a user does."""
    command = [sys.executable, "-m", f"qexp.{attack.verb}", *attack.words]
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@dataclass(frozen=True)
class Report:
    """What became of the commands: each with why it failed, empty where it did not."""

    results: list[tuple[Attack, str]]

    @property
    def failed(self) -> list[tuple[Attack, str]]:
        return [(attack, why) for attack, why in self.results if why]

    def summary(self) -> str:
        """Commands and failures of each kind, and in all."""
        tried, failed = collections.Counter(), collections.Counter()
        for attack, why in self.results:
            tried[attack.kind] += 1
            failed[attack.kind] += bool(why)
        lines = [f"{kind:20} {count:5} commands {failed[kind]:4} failed" for kind, count in tried.items()]
        share = 100 * len(self.failed) / max(1, len(self.results))
        return "\n".join((*lines, f"{len(self.results)} commands, {len(self.failed)} failed ({share:.1f} %)"))


def attack_all(attacks: Sequence[Attack], template: Path, settings: Settings, table: TextIO) -> Report:
    """Run commands, `settings.jobs` at a time, and say at once which failed; each is a row of the CSV."""
    writer = csv.writer(table)
    writer.writerow(("verb", "kind", "want", "key", "command", "failed"))
    here, warm = threading.local(), None if settings.fresh else _warm()
    servers, lock, results = [], threading.Lock(), []

    def start() -> None:
        with lock:
            here.folder = template.parent / f"work-{threading.get_ident()}"
            here.ground = Ground(template, here.folder)
            if warm is not None:
                here.server = warm()
                servers.append(here.server)

    def run(attack: Attack) -> Answer:
        if settings.fresh:
            return run_fresh(attack, here.folder, settings.limit_s)
        child = here.server.start(*attack.words, verb=attack.verb, folder=here.folder, log=template.parent / here.folder.name[5:])
        code = child.code_within(settings.limit_s)
        text = child.log.read_text(errors="replace")
        child.log.unlink()
        return code, text

    def one(attack: Attack) -> None:
        why = here.ground.try_one(attack, run)
        with lock:
            results.append((attack, why))
            writer.writerow((attack.verb, attack.kind, attack.want, attack.key, str(attack), why))
            table.flush()
            if why:
                print(f"{attack.kind}: {attack}\n    {why}", flush=True)
            if len(results) % 50 == 0:
                print(f"{len(results)} of {len(attacks)}", flush=True)

    with ThreadPoolExecutor(settings.jobs, initializer=start) as pool:
        list(pool.map(one, attacks))
    for server in servers:
        server.close()
    return Report(results)


def main() -> int:
    try:
        settings = parse(Settings, sys.argv[1:])
    except (UserError, UserErrors) as error:
        print(error, file=sys.stderr)
        return 2
    limit = settings.memory_gib << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # of the commands, which inherit it
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        template = Path(folder, "template")
        make_template(template)
        store = (*JOB, "name=stored", "bits=4")
        assert run_fresh(Attack("train", "", store, "lawful", ""), template, 600)[0] == 0, "the right command fails"
        attacks = [attack for attack in all_attacks(template) if attack.kind in (settings.kinds or (attack.kind,))]
        attacks = [attack for attack in attacks if attack.verb in (settings.verbs or (attack.verb,))][:: settings.every]
        with open(settings.out, "w", newline="", encoding="utf-8", errors="backslashreplace") as table:
            report = attack_all(attacks, template, settings, table)
        print(f"\n{report.summary()}; all of them: {settings.out}")
        return 1 if len(report.failed) > 0.02 * len(report.results) else 0
    return 130


if __name__ == "__main__":
    sys.exit(main())
