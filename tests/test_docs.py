"""What the documents say of the code is so."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/architecture.md").read_text()


def test_the_picture_of_the_rooms_is_what_the_code_says():
    checked = subprocess.run([sys.executable, ROOT / "docs/architecture.py", "--check"], check=False)
    assert checked.returncode == 0, "draw it again: python docs/architecture.py"


def test_every_file_that_the_architecture_names_exists():
    named = re.findall(r"`([\w/]+(?:\.py|/))`", TEXT)
    assert named
    missing = [name for name in named if not any((top / name).exists() for top in (ROOT, ROOT / "layerdiffuse_mcp"))]
    assert not missing


def test_the_architecture_names_every_room():
    rooms = [path.parent.name for path in (ROOT / "layerdiffuse_mcp").glob("*/__init__.py")]
    picture = (ROOT / "docs/architecture.svg").read_text()
    assert [room for room in rooms if room not in picture] == []
