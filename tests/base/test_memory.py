import subprocess
import sys

# An object that only a search for unreachable ones finds, and what is registered to be closed in the end.
PROGRAM = """
import atexit, gc, sys
from qexp.base.memory import leave_memory_to_the_system
if sys.argv[1] == "left":
    leave_memory_to_the_system()
class Circle:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("looked for")
gc.disable()
Circle()
atexit.register(print, "closed")
"""


def test_a_command_ends_without_a_last_look_for_unreachable_objects():
    for how, said in (("plain", ["closed", "looked for"]), ("left", ["closed"])):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == said
