"""A launcher must be there at once: before its processes load torch, it does not."""

import subprocess
import sys

PROGRAM = """
import sys, time
before = set(sys.modules)
started = time.perf_counter()
import launchers
launchers.make_plan(launchers.LaunchRequest(module="m", processes=2), launchers.this_machine())
seconds = time.perf_counter() - started
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
outside = loaded - set(sys.stdlib_module_names) - {"launchers"}
print(sorted(outside), seconds)
assert not outside
assert seconds < 1.0  # tens of milliseconds; the slack is for a busy machine
"""


def test_launchers_import_the_standard_library_alone():
    # -S: no site-packages, so that packages hooked into every start are not counted
    subprocess.run([sys.executable, "-S", "-c", PROGRAM], check=True, timeout=60)
