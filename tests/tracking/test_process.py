import os
import subprocess
import sys
from dataclasses import replace

from qexp.tracking import process


def test_process_is_dead_once_it_has_ended():
    me = process.Process.current()
    assert not me.dead
    code = "from qexp.tracking.process import Process; p = Process.current(); print(p.pid, p.start, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pid, _, start = child.stdout.readline().strip().partition(" ")
    other = process.Process(me.host, int(pid), start)
    assert not other.dead
    child.kill()
    child.communicate()
    assert other.dead
    assert not replace(other, host="elsewhere").dead


def test_a_reused_process_number_is_another_process():
    me = process.Process.current()
    if me.start:
        assert replace(me, start=me.start + "0").dead
    assert not replace(me, start="").dead


def test_a_zombie_is_dead():
    me = process.Process.current()
    if not me.start:
        return
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    zombie = process.Process(me.host, child.pid, process._start(child.pid))
    assert not zombie.dead
    child.stdin.write("\n")
    child.stdin.flush()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # WNOWAIT leaves it a zombie
    assert zombie.dead
    child.communicate()


def test_the_machine_has_a_name():
    assert process.host() == process.Process.current().host != ""
