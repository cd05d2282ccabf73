"""What every test stands on: one torch thread a process, no display, no telemetry, no rank left over from the shell."""

import contextlib
import copy
import hashlib
import importlib
import io
import json
import os
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: xdist runs a process a core, and results must not hang on how many cores there are.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name in ("MLFLOW_TRACKING_URI", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)

EXTRA_DATA = "QEXP_EXTRA_DATA"

# The same examples on every run, and no limit on time: a slow machine is no mistake.
settings.register_profile("qexp", deadline=None, derandomize=True)
settings.load_profile("qexp")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Relative paths (`runs/`, `results/`) fall into the test's own folder, never into the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))


@pytest.fixture(autouse=True, scope="session")
def _choices_of_groups():
    """Hydra's groups as a command finds them."""
    from qexp.sweep.config_store import store_choices

    store_choices()


@pytest.fixture(autouse=True, scope="session")
def _composed_once():
    """What Hydra composes of the same files of `conf/` is composed once a process: it takes longer than a small training.

    Folders of a test's own and Hydra's own settings are composed each time.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from qexp.sweep.compose import conf_dir

    compose, known = hydra.compose, {}

    def composed(config_name=None, overrides=None, **options):
        places = {source.path for source in GlobalHydra.instance().config_loader().get_search_path().get_path()}
        if str(conf_dir()) not in places or any(text.lstrip("+~").startswith("hydra") for text in overrides or ()):
            return compose(config_name, overrides, **options)
        key = (config_name, *(overrides or ()), *options.items())
        if key not in known:
            known[key] = compose(config_name, overrides, **options)
        config = copy.deepcopy(known[key])
        if "hydra" in config:
            config.hydra.runtime.cwd = os.getcwd()
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", composed)
        yield


@pytest.fixture(autouse=True)
def _drawn_alike():
    """What a test draws without a seed of its own, such as dropout, is the same on every run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@dataclass(frozen=True)
class Done:
    """A command that has run: its exit code and what it said."""

    code: int
    out: str
    err: str


def run_here(*arguments: str, verb: str = "train") -> Done:
    """Run `python -m qexp.<verb> ...` in this process, which saves the seconds that a new one takes to import torch.

    A command holds nothing in memory beyond its own end, so only the time differs.
    """
    out, err, kept = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"qexp.{verb}", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``noload``", DeprecationWarning)  # see pyproject.toml
            code = importlib.import_module(f"qexp.{verb}").main()
    finally:
        sys.argv = kept
        os.environ.pop("HYDRA_FULL_ERROR", None)
    return Done(code, out.getvalue(), err.getvalue())


def compose_values(*overrides: str, verb: str = "train") -> dict:
    """The resolved values of one job, as Hydra composes them from `conf/`."""
    import hydra
    from omegaconf import OmegaConf

    from qexp.sweep.compose import conf_dir

    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose({"train": "config"}.get(verb, verb), list(overrides))
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.fixture(scope="session")
def cli():
    """Run a command line in this process: `cli("bits=4,8", "-m")` -> code, out, err."""
    return run_here


@pytest.fixture(scope="session")
def compose():
    """Values of one job: `compose("data=digits", "bits=4")`."""
    return compose_values


NETWORKS = Path(__file__).with_name("networks.py")
TINY = (
    "data=digits", "train=smoke", "model=custom", f"model.factory={NETWORKS}:tiny", "device=cpu", "tracking.enabled=false",
    "draw_figures=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides of a job that takes a fraction of a second: a small network, one epoch on the digits, no MLflow, no figures."""
    return TINY


@pytest.fixture(scope="session")
def tiny_values(compose, tiny):
    """Values of one tiny job."""
    return compose(*tiny)


@pytest.fixture(scope="session")
def job(tiny_values):
    """Values of a tiny job with changes: `job({"bits": 4, "train.lr": 0.5})`."""

    def make(changes=None, values=tiny_values):
        values = copy.deepcopy(values)
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            owner = values
            for name in path:
                owner = owner[name]
            owner[last] = value
        return values

    return make


@pytest.fixture(scope="session")
def preparer():
    """Prepares jobs for all tests of a process, which so share the data sets in memory."""
    from qexp.experiment.prepare import Preparer

    return Preparer()


@pytest.fixture(scope="session")
def prepared(job, preparer):
    """A merged job of the given changes, prepared."""
    from qexp.sweep.check import check

    def make(*changes):
        return preparer.prepare(check([job(change) for change in changes or ({},)], "train"))

    return make


@pytest.fixture
def sweep():
    from qexp.tracking.record import Sweep

    return Sweep(sweep="s1", command="python -m qexp.train", verb="train")


@pytest.fixture
def network():
    """A small network whose batch norm has statistics, in eval mode; what `qexp.analyze` is asked about."""
    import torch

    make = runpy.run_path(str(NETWORKS))["tiny"]
    torch.manual_seed(0)
    network = make(10, 1)
    network[1].running_mean.uniform_(-0.2, 0.2)
    network[1].running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="session")
def extra_data() -> Path:
    """The folder of data that no dependency bundles, named by an environment variable; the test skips where it is not set."""
    folder = os.environ.get(EXTRA_DATA)
    if not folder:
        pytest.skip(f"{EXTRA_DATA} names no folder of extra data (cifar10-jpeg/, resnet20-12fca82f.th)")
    path = Path(folder).expanduser()
    assert path.is_dir(), f"{EXTRA_DATA}={folder}: no such folder"
    return path.resolve()


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` skip, and say why, where there is no CUDA device; an id must be the same in every process.

    xdist runs nothing where its processes collect other ids, and an id that holds an address is another in each.
    """
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:
        raise pytest.UsageError(f"Tests whose ids hold an address: {addresses}. Give ids= to parametrize.")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def all_numbers(runs="runs"):
    """Whatever trainings have left behind, without times: curves, every measurement, the bytes of weights and predictions."""
    folder = Path(runs, "trainings")
    rows = [json.loads(line) for path in folder.glob("*/variants/*.jsonl") for line in path.read_text().splitlines()]
    kept = ("prec1", "prec5", "loss", "kl", "digest", "alarms", "predictions")
    logs = {path.parent.name: map(json.loads, path.read_text().splitlines()) for path in folder.glob("*/train.jsonl")}
    return {
        "curve": {
            (name, line["epoch"]): (line["train_loss"], line["train_prec1"], line["lr"])
            for name, log in logs.items()
            for line in log
        },
        "measured": {((row["training"], row["variant_key"]), row["epoch"]): [row[key] for key in kept] for row in rows},
        "files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.safetensors"))
        },
    }


@pytest.fixture(scope="session")
def numbers():
    """Reads what the trainings below a folder have left behind."""
    return all_numbers
