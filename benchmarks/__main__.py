"""All benchmark tables, one after the other: `make bench`.

A script that goes over its budget returns 1; the others still run, and then this returns 1 too.
"""

import subprocess
import sys
import time
from pathlib import Path

began = time.monotonic()
over: list[str] = []
for script in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"\n== {script.stem.replace('_', ' ')}", flush=True)
    began_here = time.monotonic()
    if subprocess.run([sys.executable, str(script)]).returncode:
        over.append(script.stem)
    print(f"({time.monotonic() - began_here:.0f} seconds)")
print(f"\n{(time.monotonic() - began) / 60:.0f} minutes")
if over:
    sys.exit(f"over budget, or failed: {', '.join(over)}")
