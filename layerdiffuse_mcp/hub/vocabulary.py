"""What a base has learnt words for, where its card names a list of them: what to choose from, and what it cannot draw.

    known = vocabulary_of(entry)              # a Vocabulary, or None: nobody can say what a large base knows
    known.doubt("a sword")                    # "pocket has not learnt ...", or None
    known.matching("apple").subjects          # ("red apple", "green apple", "pineapple")

The list is a JSON file beside the base (`ModelEntry.vocabulary`): `subjects` by name with the phrases that each was
learnt under, `scenes` behind them, and `styles` and `materials`, lists. No torch.
"""

import difflib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import listed

NEAREST = 3
LEAST_ALIKE = 0.7
"""Of two words' letters that have to agree, for one to be named for the other."""
LONGEST, MOST_COMPARED = 2000, 40
"""Characters of a prompt that are looked at, and words of it that are compared with every phrase."""
OFTEN = 3
"""Phrases that begin with a word which is an adjective."""
_CLAUSES = re.compile(r"[,;:.!?\n]+")
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_ARTICLES = frozenset(["der", "die", "das", "le", "la", "el", "il"])
"""Of other languages; the second would be a subject."""
_FILLERS = frozenset(["a", "an", "the", "of", "on", "in", "at", "with", "and"])


@dataclass(frozen=True)
class Vocabulary:
    """The words of the base `model`; phrases by subject, the first its name."""

    model: str
    subjects: Mapping[str, tuple[str, ...]]
    scenes: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    materials: tuple[str, ...] = ()

    def knows(self, prompt: str, *, scenes: bool = False) -> bool:
        """Whether a prompt names a subject, or where `scenes` count one of these; in the plural, too."""
        clauses = [_words(clause) for clause in _CLAUSES.split(prompt)]
        clauses = [said[1:] if said[1:] and said[0] in _ARTICLES else said for said in clauses]
        phrases = [_words(phrase) for phrase in self._phrases(scenes)]
        adjectives = self._adjectives(phrases)
        return any(_within(phrase, said, adjectives) for said in clauses for phrase in phrases)

    def nearest(self, prompt: str, *, scenes: bool = False) -> tuple[str, ...]:
        """The phrases that end in a word spelled like one of a prompt: at most `NEAREST`, the nearest first."""
        said = [word for word in dict.fromkeys(_words(prompt)) if word not in _FILLERS][:MOST_COMPARED]
        best: dict[str, tuple[float, int]] = {}  # by its last word, of phrases with the same the shortest
        names: dict[str, str] = {}
        for phrase in self._phrases(scenes):
            *others, last = _words(phrase)
            if last not in names:
                best[last] = max((_alike(last, word) for word in said), default=0.0), -len(others)
                names[last] = phrase
            elif -len(others) > best[last][1]:
                best[last], names[last] = (best[last][0], -len(others)), phrase
        near = sorted((last for last in best if best[last][0] >= LEAST_ALIKE), key=lambda last: -best[last][0])
        return tuple(names[last] for last in near[:NEAREST])

    def doubt(self, prompt: str, *, scenes: bool = False) -> str | None:
        """What to say of a prompt of which the base knows no phrase; None where it knows one, or nothing is said."""
        prompt = extract_loras(prompt[:LONGEST])[0]
        if not prompt.strip() or self.knows(prompt, scenes=scenes):
            return None
        return self.unlearnt([prompt.strip()], scenes=scenes)

    def unlearnt(self, texts: Sequence[str], *, scenes: bool = False) -> str:
        """What to say of texts none of which it knows."""
        together = " ".join(texts)[:LONGEST]
        near = self.nearest(together, scenes=scenes)
        nearest = f"The nearest that it knows, by spelling: {', '.join(near)}. " if near else ""
        language = "" if "".join(_words(together)).isascii() else "It has learnt English alone. "
        name = "names" if len(texts) == 1 else "name"
        return (
            f"{self.model} knows no subject that {listed(texts)} {name}, so it likely draws something else. "
            f"{language}{nearest}It has {len(self.subjects)} subjects: list_models lists them, subjects='...' "
            "those with a word. Name one of them, or use a larger model."
        )

    def matching(self, text: str) -> "Vocabulary":
        """Those subjects, scenes, styles and materials whose phrases hold every word of a text."""
        wanted = [word.casefold() for word in text.split()]

        def fits(phrases: Iterable[str]) -> bool:
            return any(all(word in phrase for word in wanted) for phrase in phrases)

        return replace(
            self,
            subjects={name: phrases for name, phrases in self.subjects.items() if fits(phrases)},
            **{kind: tuple(one for one in getattr(self, kind) if fits([one])) for kind in LISTS},
        )

    def _adjectives(self, phrases: list[list[str]]) -> set[str]:
        """Words that name a subject alone, and say how another is when they stand before it: an orange, a glass."""
        before = Counter(phrase[0] for phrase in phrases if len(phrase) > 1 and phrase[1] not in _FILLERS)
        return {*self.materials, *(word for word, count in before.items() if count >= OFTEN)}

    def _phrases(self, scenes: bool) -> Iterable[str]:
        for phrases in self.subjects.values():
            yield from phrases
        if scenes:
            yield from self.scenes


LISTS = ("scenes", "styles", "materials")


def vocabulary_of(entry: ModelEntry) -> Vocabulary | None:
    """The words of a base that is on this machine, if its card names a list of them."""
    if entry.vocabulary is None or entry.path is None:
        return None
    return replace(_read(entry.path.parent / entry.vocabulary), model=entry.name)


@functools.cache
def _read(path: Path) -> Vocabulary:
    known = json.loads(path.read_text(encoding="utf-8"))
    subjects = {name: tuple(dict.fromkeys([name, *phrases])) for name, phrases in known["subjects"].items()}
    return Vocabulary("", subjects, **{kind: tuple(known.get(kind, ())) for kind in LISTS})


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without what stresses them; of "dragon's" the first part."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.casefold().replace("\u2019", "'"))]


def _within(phrase: list[str], said: list[str], adjectives: set[str]) -> bool:
    """Whether a phrase's words stand next to each other in what is said, the last perhaps in the plural.

    An adjective alone counts only where no word that it could belong to follows it.
    """
    length = len(phrase)
    for end in range(length, len(said) + 1):
        if said[end - length : end - 1] == phrase[:-1] and _same(phrase[-1], said[end - 1]):
            belongs = end < len(said) and said[end] not in _FILLERS
            if not (belongs and length == 1 and said[end - 1] in adjectives):
                return True
    return False


def _same(word: str, said: str) -> bool:
    return any(one in _plurals(other) for one, other in ((word, said), (said, word)))


def _plurals(word: str) -> tuple[str, ...]:
    """A word as one and as many."""
    return (word, f"{word}s", f"{word}es", f"{word[:-1]}ies" if word.endswith("y") else word)


def _alike(one: str, other: str) -> float:
    if one == other:
        return 1.0
    matcher = difflib.SequenceMatcher(None, one, other)
    return matcher.ratio() if matcher.quick_ratio() >= LEAST_ALIKE else 0.0
