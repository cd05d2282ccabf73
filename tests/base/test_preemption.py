import os
import signal

import pytest

from qexp.base import preemption


def test_outside_the_loop_a_signal_stops_at_once():
    with preemption.listening(), pytest.raises(preemption.Preempted, match="stopped by SIGTERM") as raised:
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.exit_code == 143
    assert not isinstance(raised.value, Exception)
    assert not preemption.requested()


def test_within_it_is_noted():
    with preemption.listening():
        with preemption.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert preemption.requested()
        assert preemption.stop().signum == signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(signum) for signum in preemption.SIGNALS]
    with preemption.listening():
        assert [signal.getsignal(signum) for signum in preemption.SIGNALS] != before
    assert [signal.getsignal(signum) for signum in preemption.SIGNALS] == before


def test_a_forked_worker_dies_of_sigterm_and_leaves_ctrl_c_to_its_parent():
    with preemption.listening(), preemption.deferred():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            if not preemption.requested():
                signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_the_same_order_twice_is_one():
    with preemption.listening():
        with pytest.raises(preemption.Preempted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(preemption.Preempted):
            signal.raise_signal(signal.SIGINT)
