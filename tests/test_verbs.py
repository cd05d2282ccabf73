"""The command `qexp`, its help, the machine's check and a copy of the configuration, as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qexp
from qexp.config.reference import argument_docs, key_infos
from qexp.config.validate import all_keys
from qexp.sweep.help import VERBS, WIDTH

ROOT = Path(__file__).resolve().parents[1]


def run(*words, folder=ROOT):
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=900)


def test_every_verb_is_a_module_with_its_sentence():
    modules = {path.stem for path in (ROOT / "qexp").glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(VERBS)
    listed = run("qexp").stdout
    assert all(f"  {name} " in listed and meaning in listed for name, meaning in VERBS.items())


def test_one_name_for_all_verbs(tmp_path):
    assert run("qexp", "--version").stdout == f"qexp {qexp.__version__}\n"
    wrong = run("qexp", "tarin", "bits=4")
    assert wrong.returncode == 2 and "Did you mean train?" in wrong.stderr and not wrong.stdout
    asked = run("qexp", "trainings", f"runs_dir={tmp_path}")
    assert asked.returncode == 0 and asked.stdout == run("qexp.trainings", f"runs_dir={tmp_path}").stdout
    assert run("qexp", "report", "nme=x").returncode == 2, "an exit code of the verb"


def test_help_fits_a_screen_and_explains_a_key():
    lines = run("qexp.train", "--help").stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= WIDTH + 10
    assert all(name in "\n".join(lines) for name in VERBS)
    about = run("qexp.train", "--help", "quant.weight.group_size", "policy").stdout
    assert about.startswith("quant.weight.group_size=64\n") and "quant.weight.granularity=per_group" in about
    assert "first_last" in about and "policy.edge_bits=8" in about
    wrong = run("qexp.train", "--help", "quant.weight.group_siz")
    assert wrong.returncode == 2 and "Did you mean quant.weight.group_size?" in wrong.stderr


def test_hydra_answers_as_anywhere_else():
    whole = run("qexp.train", "bits=3", "--cfg", "job").stdout
    assert "bits: 3" in whole and "granularity: per_tensor" in whole
    assert "per_tensor" in run("qexp.train", "--cfg", "job", "--package", "quant.weight").stdout
    assert "Installed Hydra Plugins" in run("qexp.train", "--info").stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("qexp tra", {"train", "trainings"}),
        ("qexp train quant=fix", {"quant=fixed_point"}),
        ("qexp evaluate evaluate.ba", {"evaluate.batch_size="}),
        ("qexp train bits=[4, quant=fix", set()),
        ("qexp report na", set()),
    ],
)
def test_a_shell_completes_verbs_keys_and_options(line, offered):
    """By the function that Hydra's script defines, in the shell that calls it."""
    script = f"""
        eval "$(qexp train -sc install=bash)" && complete -p qexp >/dev/null || exit 1
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(line.split()) - 1}
        hydra_bash_completion; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and set(done.stdout.split()) == offered and not done.stderr, done.stderr


def test_a_shell_that_is_not_known():
    done = run("qexp", "-sc", "install=ksh")
    assert done.returncode == 2 and "-sc=install=ksh: allowed is install=SHELL" in done.stderr
    assert "hydra_fish_completion" in run("qexp", "-sc", "install=fish").stdout


def test_every_key_has_a_meaning_and_a_page():
    infos = key_infos()
    groups = {name.rpartition(".")[0] for name in all_keys() if "." in name}
    assert set(all_keys()) - groups - set(infos) == {name for name in all_keys() if name.startswith("policy.rules.")}
    assert all(info.meaning and info.allowed and "typing" not in info.allowed for info in infos.values())
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    sys.path.insert(0, str(ROOT / "scripts"))
    import write_keys

    assert page == write_keys.page(), "python scripts/write_keys.py writes it anew"


def test_argument_docs_join_lines():
    class Settings:
        """Something.

        Args:
            first: one line,
                and another: with a colon.
            second: last.

        More text: that is no argument.
        """

    assert argument_docs(Settings) == {"first": "one line, and another: with a colon.", "second": "last."}


def test_the_doctor_looks_at_the_machine(tmp_path):
    done = run("qexp.doctor", f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {match[1]: match[2] for match in re.finditer(r"^(\S+) +(ok|missing|broken)  ", done.stdout, re.MULTILINE)}
    assert states["torch"] == states["packages"] == states["runs_dir"] == "ok"
    assert states["export.runtime=onnxruntime"] == "ok" and "model=efficientnet_lite2" in states
    (tmp_path / "file").write_text("")
    broken = run("qexp.doctor", f"runs_dir={tmp_path / 'file'}")
    assert broken.returncode == 1 and re.search(r"^runs_dir +broken", broken.stdout, re.MULTILINE)


@pytest.mark.parametrize("taken", [False, True])
def test_a_copy_of_the_configuration_is_read(tmp_path, taken):
    conf = tmp_path / "mine"
    if taken:
        conf.mkdir()
        (conf / "kept.yaml").write_text("a: 1")
    done = run("qexp.init", f"folder={conf}")
    if taken:
        assert done.returncode == 2 and "empty or not there yet" in done.stderr and [*conf.iterdir()] == [conf / "kept.yaml"]
        assert run("qexp.init", f"folder={300 * 'a'}", folder=tmp_path).returncode == 2
        return
    recipe = conf / "train" / "smoke.yaml"
    recipe.write_text(recipe.read_text() + "\nlabel_smoothing: 0.25\n")
    shown = run("qexp.train", f"--config-path={conf}", "train=smoke", "--cfg", "job", folder=tmp_path)
    assert "label_smoothing: 0.25" in shown.stdout, shown.stderr


def test_the_doctor_reports_what_is_missing(tmp_path, monkeypatch, capsys):
    """In this process, with a runtime whose package is not there and a store that is none."""
    from qexp import doctor

    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else real(name))
    (tmp_path / "mlflow.db").write_text("no database, but some text that is long enough for a header of one hundred bytes" * 3)
    assert doctor.run(doctor.DoctorSettings(runs_dir=str(tmp_path))) == 1
    out = capsys.readouterr().out
    assert re.search(r"^export.runtime=litert +missing", out, re.MULTILINE)
    assert re.search(r"^MLflow's store +broken .*qexp.sync", out, re.MULTILINE)
    assert doctor.run(doctor.DoctorSettings(runs_dir=300 * "a")) == 1 and "bytes each" in capsys.readouterr().out


def test_every_key_can_be_asked_for():
    from qexp.sweep.arguments import quote_places
    from qexp.sweep.help import explained

    words = quote_places([*key_infos()])
    assert words == [*key_infos()]
    assert len([line for line in explained(words, {}, {}) if not line.startswith(" ")]) == len(words)
