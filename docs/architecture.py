"""Draws docs/architecture.svg: the rooms of the package, floor by floor, and who imports whom, read from the code.

    python docs/architecture.py             # writes the picture
    python docs/architecture.py --check     # exit status 1 when it is not what the code says today

A floor imports only from below (`tests/test_house.py` holds that), so every arrow points down. An arrow that others
imply (a room imports what a room that it imports does) is left out: the picture shows the way, not every import.
"""

import ast
import sys
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "layerdiffuse_mcp"
PICTURE = HERE / "architecture.svg"

FLOORS = (
    ("cli",),
    ("server",),
    ("jobs",),
    ("backends",),
    ("engine",),
    ("outputs", "recipes"),
    ("images", "hub"),
    ("api",),
    ("text", "families", "settings", "logs", "errors"),
)
SAYS = {
    "cli": "commands for people",
    "server": "an agent's words to Requests, results back to MCP",
    "jobs": "planner: decides everything; queue: order, progress, cancel",
    "backends": "worker processes: local, pictures",
    "engine": "everything that needs torch: load, draw, decode",
    "outputs": "files of a job, all or none",
    "recipes": "the recipe in a picture",
    "images": "alpha, compositing, encoding",
    "hub": "which models, where, fetching",
    "api": "Request, plan, Outcome",
    "text": "tokens, emphasis",
    "families": "a card each",
    "settings": "settings",
    "logs": "the log file",
    "errors": "errors",
}
WIDTH, HEIGHT, GAP, MARGIN = 920, 46, 34, 20


def rooms() -> list[str]:
    """Every room, from the top floor down."""
    return [name for floor in FLOORS for name in floor]


def imports() -> Counter[tuple[str, str]]:
    """How many modules of a room import from one of a floor below."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here not in SAYS:
            continue
        targets = {
            node.module.split(".")[1]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{PACKAGE.name}.")
        }
        beside = next(floor for floor in FLOORS if here in floor)
        found.update((here, target) for target in targets if target in SAYS and target not in beside)
    return found


def shown(found: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """The imports that no way by other rooms implies."""
    below = {room: {there for here, there in found if here == room} for room in SAYS}
    for room in reversed(rooms()):
        below[room] |= {far for near in below[room] for far in below[near]}
    return sorted(
        (here, there)
        for here, there in found
        if not any(there in below[other] for start, other in found if start == here and other != there)
    )


def boxes() -> dict[str, tuple[float, float, float]]:
    """Left, top and width of each room's box."""
    placed = {}
    for row, floor in enumerate(FLOORS):
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / len(floor)
        for column, name in enumerate(floor):
            placed[name] = (MARGIN + column * (width + GAP), MARGIN + row * (HEIGHT + GAP), width)
    return placed


def svg() -> str:
    """The picture."""
    placed, lines = boxes(), []
    arrows = shown(imports())
    leaving, arriving = Counter[str](), Counter[str]()
    leave, arrive = Counter(here for here, _ in arrows), Counter(there for _, there in arrows)
    for here, there in sorted(arrows, key=lambda arrow: (placed[arrow[1]][0], placed[arrow[0]][0])):
        leaving[here] += 1
        arriving[there] += 1
        (x1, y1, w1), (x2, y2, w2) = placed[here], placed[there]
        start = x1 + w1 * leaving[here] / (leave[here] + 1)
        end = x2 + w2 * arriving[there] / (arrive[there] + 1)
        lines.append(
            f'<line x1="{start:.0f}" y1="{y1 + HEIGHT:.0f}" x2="{end:.0f}" y2="{y2:.0f}" stroke="#799" '
            'stroke-width="1.6" marker-end="url(#a)"/>'
        )
    for name, (x, y, width) in placed.items():
        text = f'<tspan font-weight="bold">{escape(name)}</tspan>'
        if len(next(floor for floor in FLOORS if name in floor)) < 3:
            text += f' <tspan fill="#456">{escape(SAYS[name])}</tspan>'
        lines.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6" fill="#eef5f5" stroke="#355"/>'
            f'<text x="{x + 12:.0f}" y="{y + 28:.0f}">{text}</text>'
        )
    height = 2 * MARGIN + len(FLOORS) * (HEIGHT + GAP) - GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="15"><defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="#8aa"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    )
    return "\n".join([head, *lines, "</svg>", ""])


def main(arguments: list[str]) -> int:
    """Write or check the picture."""
    if "--check" in arguments:
        return 0 if PICTURE.exists() and PICTURE.read_text() == svg() else 1
    PICTURE.write_text(svg())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
