"""Alpha facts in words, for those who read no numbers; nothing heavy is imported."""

from layerdiffuse_mcp.api.outcome import AlphaFacts
from layerdiffuse_mcp.images.verdict import CUT_OUT, has_to_keep_clear


def describe(facts: AlphaFacts, kind: str = CUT_OUT) -> str:
    """The facts in words: "68% transparent, 9% partial; subject touches the bottom edge".

    Of a `kind` of picture that is to fill its frame, nothing is said of the edges.
    """
    if facts.opaque == 1:
        return "fully opaque: no transparency"
    if facts.bbox is None:
        return "100% transparent: nothing is visible"
    shares = f"{percent(facts.transparent)} transparent, {percent(facts.partial)} partial"
    if not facts.has_transparency:
        return f"{shares}, {percent(facts.opaque)} opaque"
    if not has_to_keep_clear(kind):
        return shares
    match facts.edges_touched:
        case ():
            where = "no edge"
        case (edge,):
            where = f"the {edge} edge"
        case (*others, edge) if len(others) < 3:
            where = f"the {', '.join(others)} and {edge} edges"
        case _:
            where = "all four edges"
    return f"{shares}; subject touches {where}"


def percent(share: float) -> str:
    """A share in words: none and all are said of no other."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
