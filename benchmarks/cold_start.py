"""Start to the answered `tools/list`: this server beside a bare SDK server, one after the other.

    python benchmarks/cold_start.py [ROUNDS]

Prints one table; the budget is 1.25 times the bare server. The rounds alternate, so that whatever
else the machine does falls on both alike; the fastest round of each counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import header, table

BUDGET = 1.25
BARE = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("bare")


@server.tool()
def add(a: int, b: int) -> int:
    return a + b


server.run("stdio")
"""
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}}
MESSAGES = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}},
)


def seconds_to_tools(command: list[str]) -> float:
    """Seconds from starting the process to the last byte of its list of tools."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in MESSAGES))
        process.stdin.flush()
        while True:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{command} ended without an answer")
            if json.loads(line).get("id") == 2:
                break
        spent = time.perf_counter() - began
        process.stdin.close()
    return spent


def main() -> int:
    """Measure, print the table, and return 1 when the budget is passed."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        os.environ["LAYERDIFFUSE_OUTPUT_DIR"] = folder
        commands = {
            "bare SDK server": [sys.executable, str(bare)],
            "layerdiffuse-mcp": [sys.executable, "-m", "layerdiffuse_mcp"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds_to_tools(command))
    best = {name: min(spent) for name, spent in times.items()}
    ratio = best["layerdiffuse-mcp"] / best["bare SDK server"]
    header(f"Seconds from starting the server to its list of tools, of {rounds} rounds")
    rows = [(name, best[name], statistics.median(spent)) for name, spent in times.items()]
    table([("server", "fastest", "median"), *rows])
    print(f"ratio {ratio:.2f}, budget {BUDGET}")
    return 0 if ratio <= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
