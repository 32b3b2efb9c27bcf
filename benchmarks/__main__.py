"""All benchmark tables, one after the other: `make bench`."""

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    print(f"\n== {script.stem.replace('_', ' ')}", flush=True)
    subprocess.run([sys.executable, str(script)], check=True)
