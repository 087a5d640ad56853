"""How fast this machine forks: most of what the start of hundreds of circuits is made of."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys

USUAL_S = 2.4
"""What used_s() returns where two velads have 255 circuits up after 3.7 s (EPYC, 2 CPUs)."""

PROCESSES, CHILDREN = 2, 255
# Strings. A child touches 2.5 MB of them, as much as a worker has of its own.
OBJECTS, TOUCHED, PARENTS_WORK = 150_000, 40_000, 15_000


def slowness() -> float:
    """Return how many times slower this machine is at present than the usual one; at least 1."""
    return max(1.0, used_s() / USUAL_S)


def used_s() -> float:
    """Return what two processes at once, with 255 children each, use of the CPUs, in seconds.

    All children live at the end: memory may take longer the first time that it is used.
    """
    running = [
        subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    return sum(float(each.communicate()[0]) for each in running)


def _fork_all() -> float:
    objects = [str(number) for number in range(OBJECTS)]
    gc.freeze()
    hold, release = os.pipe()
    told, tell = os.pipe()
    for number in range(CHILDREN):
        if os.fork() == 0:
            os.close(release)
            # Counting a reference writes to the object, so its page is copied.
            for _ in objects[:TOUCHED]:
                pass
            os.write(tell, b"x")
            os.read(hold, 1)
            os._exit(0)
        start = number * PARENTS_WORK % (OBJECTS - PARENTS_WORK)
        for each in objects[start : start + PARENTS_WORK]:
            each.partition("0")
    for _ in range(CHILDREN):
        os.read(told, 1)
    os.close(release)
    for _ in range(CHILDREN):
        os.wait()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    print(_fork_all())
