"""What Hydra, OmegaConf and PyYAML raise at something of the user's is one message; nothing is started or left behind."""

import os
from pathlib import Path

import pytest

FILES = {
    "syntax": (b"a: [1,\n", "syntax.yaml, line 2: allowed is YAML"),
    "tab": (b"# @package _global_\nseed:\t1\n\tbits: 4\n", "tab.yaml, line 2: allowed is YAML"),
    "twice": (b"# @package _global_\nbits: 4\nbits: 8\n", "twice.yaml, line 3: allowed is YAML. There found duplicate key bits"),
    "latin": ("# @package _global_\nname: größe\n".encode("latin-1"), "allowed is text in UTF-8"),
    "bomb": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 10)) for name in b"bcdefghi"),
        "bomb.yaml: allowed is at most 100000 values",
    ),
    "itself": (b"# @package _global_\nname: &a [*a]\n", "itself.yaml: allowed is at most 100000 values"),
    "items": (b"# @package _global_\n- 1\n", "experiment/items"),
    "bare": (b"bits: 4\n", "experiment={'bits': 4}: allowed is values of settings. A file of conf/experiment/ begins with"),
}
WORDS = {
    "=4": "there is no such key",
    "policy=null": "policy=null: allowed is a name, or settings. Left out,",
    "quant=_base": "quant=_base: allowed is a choice that --help lists",
    "train=5": "train=5: allowed is one of cifar, imagenet, mnist5k, smoke",
    "hydra=5": "hydra=5: allowed is",
    "hydra.launcher=5": "hydra.launcher=5: allowed is settings",
    "hydra.launcher.n_job=2": "hydra.launcher.n_job=2: allowed is one of inner, n_jobs",
    "hydra.launcher._target_=x": "hydra.launcher._target_",
    "hydra.job.chdir=true": "hydra.job.chdir=true: allowed is false. Paths mean the folder of the command.",
    "hydra.verbose=[5]": "A logger name must be a string",
    "bits={4: 5}": "bits={'4': 5}: allowed is an integer",
    "\udcff=4": "command line=\\udcff=4: allowed is KEY=VALUE",
    "cases=5": "cases=5: allowed is a list of lists of KEY=VALUE",
    "cases=[[5]]": "cases=[[5]]: allowed is a list of lists of KEY=VALUE",
    "bits=range(8,8)": "0 jobs: allowed is at least one job",
    "bits=range(1,2,0)": "must not be zero",
}


def refused(done, words, left=()):
    assert done.code == 2 and "Traceback" not in done.err + done.out
    first, *rest = done.err.splitlines()
    assert first == "qexp: nothing was started." and len(rest) == 1 and words in rest[0], done.err
    assert os.listdir() == list(left)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_values(cli, tiny, name):
    path = Path("mine/experiment", f"{name}.yaml")
    path.parent.mkdir(parents=True)
    path.write_bytes(FILES[name][0])
    refused(cli("--config-dir=mine", *tiny, f"experiment={name}"), FILES[name][1], left=["mine"])


@pytest.mark.parametrize("word", WORDS)
def test_a_value(cli, tiny, word):
    refused(cli(*tiny, word, "-m"), WORDS[word])
