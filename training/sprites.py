"""Pictures that people ask sprites of and no emoji set has, drawn by our own code in Fluent's look: rounded shapes and
soft gradients for 3D, plain fills for flat.

    for name, style, svg in sprites(): ...      style "3d" or "flat"; 32 units a side

A part is a fill and a path. In 3D a fill runs from the first colour at the upper left to the second at the lower right;
flat shows their mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

STEEL, SHADE, GOLD = ("#f4f7fb", "#9fb0c6"), ("#c9d4e2", "#7487a3"), ("#ffe28a", "#d98a1a")
WOOD, DARK, RUBY = ("#b9784a", "#6d3f22"), ("#7a5238", "#432513"), ("#ff7a8a", "#c4183f")
GLASS, LIQUID, CORK = ("#e9f4ff", "#a9c6e8"), ("#d58bff", "#7a1fd0"), ("#d9a873", "#96673a")
FLAME, CORE, CRYSTAL = ("#ffb02e", "#f0441f"), ("#fff3a3", "#ffc21f"), ("#8ff0ff", "#1f7fe0")
LIGHT = ("#ffffff", "#ffffff")


class Part(NamedTuple):
    fill: tuple[str, str]
    path: str
    opacity: float = 1.0


def circle(x: float, y: float, r: float) -> str:
    return f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"


SPRITES: dict[str, list[Part]] = {
    "sword": [
        Part(STEEL, "M29.6 2.4 L28.6 8.8 L14 23.2 L8.8 18 L23.2 3.4 Z"),
        Part(SHADE, "M29.6 2.4 L28.6 8.8 L14 23.2 L11.4 20.6 Z"),
        Part(WOOD, "M8.9 20.3 L11.7 23.1 L6.6 28.2 Q5 28.6 4.1 27.9 Q3.4 27 3.8 25.4 Z"),
        Part(GOLD, "M6.2 15.6 Q7.7 14.1 9.2 15.6 L16.4 22.8 Q17.9 24.3 16.4 25.8 Q14.9 27.3 13.4 25.8 L6.2 18.6 "
                   "Q4.7 17.1 6.2 15.6 Z"),
        Part(GOLD, circle(4.4, 27.6, 2.5)),
        Part(RUBY, circle(11.3, 20.7, 1.5)),
    ],
    "potion": [
        Part(GLASS, "M12.5 6 H19.5 V12.2 A10 10 0 1 1 12.5 12.2 Z"),
        Part(LIQUID, "M7.9 18.6 Q12 16.6 16 18.6 T24.1 18.6 A8.4 8.4 0 1 1 7.9 18.6 Z"),
        Part(GLASS, "M11 5.6 H21 Q22 5.6 22 6.9 T21 8.2 H11 Q10 8.2 10 6.9 T11 5.6 Z"),
        Part(CORK, "M12.8 2.2 H19.2 Q20 2.2 19.9 3.2 L19.5 5.6 H12.5 L12.1 3.2 Q12 2.2 12.8 2.2 Z"),
        Part(LIGHT, circle(13, 23, 1.3), 0.7),
        Part(LIGHT, circle(17.6, 25.4, 0.9), 0.7),
        Part(LIGHT, circle(18.6, 21.4, 0.7), 0.7),
        Part(LIGHT, "M9.6 16.4 Q10.6 14.4 12.6 13.4 Q13.6 14 12.6 15 Q11.2 16 10.8 17.2 Q9.6 17.6 9.6 16.4 Z", 0.8),
    ],
    "staff": [
        Part(WOOD, "M4.2 29.9 Q2.4 29.6 2.2 27.8 L19 10.4 L21.6 13 Z"),
        Part(DARK, "M4.2 29.9 Q3.2 29.8 2.7 29.2 L20.3 11.7 L21.6 13 Z"),
        Part(GOLD, "M15.8 7.4 Q18 9.4 17.6 12 L20 14.4 Q22.6 14 24.6 16.2 Q25.8 13.4 23.8 11.6 L20.4 8.2 "
                   "Q18.6 6.2 15.8 7.4 Z"),
        Part(CRYSTAL, circle(23.2, 8.8, 6.2)),
        Part(LIGHT, "M19.2 7 Q20.4 4.6 22.8 4.2 Q23.8 5 22.6 5.8 Q21 6.4 20.6 7.8 Q19.6 8.4 19.2 7 Z", 0.8),
    ],
    "torch": [
        Part(WOOD, "M13.2 15.6 H18.8 L17.6 29.2 Q17.4 30.6 16 30.6 T14.4 29.2 Z"),
        Part(DARK, "M16 15.6 H18.8 L17.6 29.2 Q17.4 30.6 16 30.6 Z"),
        Part(FLAME, "M16 0.9 Q16.9 4.2 20 6.7 Q23.4 9.6 22.4 12.8 Q21.4 16.4 16 16.4 T9.6 12.6 Q8.8 9.6 11.3 7.1 "
                    "Q12 8.7 13 9 Q13 4.2 16 0.9 Z"),
        Part(CORE, "M16.2 7.4 Q16.8 9.2 18.4 10.6 Q20 12.4 18.8 14.2 Q17.6 15.8 15.8 15.7 T12.9 13.6 "
                   "Q12.5 11.9 14.2 10.7 Q15.8 9.4 16.2 7.4 Z"),
        Part(GOLD, "M11.6 14.8 Q16 17 20.4 14.8 L19.6 18.6 Q16 20 12.4 18.6 Z"),
    ],
}  # fmt: skip


def mean(first: str, second: str) -> str:
    """The colour between two, all as #rrggbb."""
    pairs = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return "#" + bytes((a + b) // 2 for a, b in pairs).hex()


def svg(parts: list[Part], style: str) -> str:
    """The parts, later ones in front, as an SVG in this style."""
    gradients, paths = [], []
    for number, (fill, path, opacity) in enumerate(parts):
        stops = "".join(f'<stop offset="{place}" stop-color="{colour}"/>' for place, colour in enumerate(fill))
        gradients.append(f'<linearGradient id="g{number}" x1="0" y1="0" x2="1" y2="1">{stops}</linearGradient>')
        shown = f"url(#g{number})" if style == "3d" else mean(*fill)
        paths.append(f'<path d="{path}" fill="{shown}" opacity="{opacity}"/>')
    body = f"<defs>{''.join(gradients)}</defs>{''.join(paths)}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{body}</svg>'


def sprites() -> Iterator[tuple[str, str, str]]:
    """(name, style, SVG) of every picture."""
    for name, parts in SPRITES.items():
        for style in ("3d", "flat"):
            yield name, style, svg(parts, style)
