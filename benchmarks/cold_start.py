"""Start to the answered `tools/list`: this server beside a bare SDK server with as many tools, one after the other.

    python benchmarks/cold_start.py [ROUNDS]

Prints one table; the budget is 1.25 times the bare server, whose tools add two numbers. Each round runs both, so that
whatever else the machine does falls on both alike; the median of the rounds' ratios counts. Processor time is told
beside the seconds, for a busy machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from _report import header, table

BUDGET = 1.25
BARE = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("bare")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


for number in range({tools}):
    server.add_tool(add, name=f"add_{{number}}")
server.run("stdio")
'''
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}}
MESSAGES = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}},
)


def to_tools(command: list[str]) -> tuple[float, float, int]:
    """Seconds from starting the process to the last byte of its list of tools, of the clock and of the processor, and
    the number of tools.
    """
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
            answer = json.loads(line)
            if answer.get("id") == 2:
                break
        spent = time.perf_counter() - began
        times = psutil.Process(process.pid).cpu_times()
        process.stdin.close()
    return spent, times.user + times.system, len(answer["result"]["tools"])


def main() -> int:
    """Measure, print the table, and return 1 when the budget is passed."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    ours = [sys.executable, "-m", "layerdiffuse_mcp"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LAYERDIFFUSE_OUTPUT_DIR": folder, "LAYERDIFFUSE_WARM_UP": "off"}
        _, _, tools = to_tools(ours)
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE.format(tools=tools))
        pairs = [(to_tools([sys.executable, str(bare)]), to_tools(ours)) for _ in range(rounds)]
    header(f"Seconds from starting the server to its list of {tools} tools, medians of {rounds} rounds")
    rows: list[tuple[object, ...]] = [("server", "seconds", "processor seconds", "tools")]
    for name, times in zip(("bare SDK server", "layerdiffuse-mcp"), zip(*pairs, strict=True), strict=True):
        seconds, processor, counts = zip(*times, strict=True)
        rows.append((name, statistics.median(seconds), statistics.median(processor), counts[0]))
    table(rows)
    ratio, of_processor = (statistics.median(own[n] / plain[n] for plain, own in pairs) for n in (0, 1))
    print(f"ratio {ratio:.2f}, of processor time {of_processor:.2f}, budget {BUDGET}")
    return 0 if min(ratio, of_processor) <= BUDGET else 1


if __name__ == "__main__":
    sys.exit(main())
