"""What an evaluation takes is told, and refused in one message where the machine has less."""

import re

from qexp.base.memory import memory_limit_bytes, process_bytes
from qexp.experiment import memory


def test_a_batch_that_does_not_fit_is_refused_before_anything_starts(cli, tiny, monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", 0)
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: 600_000)
    command = (*tiny, "bits=8", "train.epochs=1")
    done = cli(*command, "evaluate.batch_size=300")
    assert done.code == 2 and done.err.count("evaluate.batch_size") == 2 and "Traceback" not in done.err
    (fits,) = map(int, re.findall(r"evaluate\.batch_size=(\d+) fits\.", done.err))
    assert 1 <= fits < 300
    assert cli(*command, f"evaluate.batch_size={fits}", "plan_only=true").code == 0
    assert cli(*command, f"evaluate.batch_size={fits + 2}", "plan_only=true").code == 2
    few = cli(*command, "evaluate.batch_size=1000000", f"evaluate.num_images={fits}", "plan_only=true")
    assert few.code == 0 and "an evaluation takes about 0.0 GiB of memory" in few.out, few.err


def test_the_limit_is_no_less_than_what_the_process_has():
    assert 0 < process_bytes("VmRSS") <= process_bytes("VmHWM") <= memory_limit_bytes()
