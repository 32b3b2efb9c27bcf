"""What output files are called: whatever is wished gives a name that is safe, short, and keeps the letters it can."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.outputs.names import SLUG_BYTES, SLUG_LENGTH, file_name, slug, words_in


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red apple, shiny!", "a-red-apple-shiny"),
        ("étoile filante", "etoile-filante"),
        ("Äpfel", "apfel"),
        ("A\u0308pfel", "apfel"),
        ("ñandú", "nandu"),
        ("Straße nach Łódź", "strasse-nach-lodz"),
        ("İstanbul", "istanbul"),
        ("红苹果", "红苹果"),
        ("がく", "がく"),
        ("й Ё", "й-ё"),
        ("ΆΝΘΡΩΠΟΣ", "άνθρωπος"),
        ("한국어 사과", "한국어-사과"),
        ("सेब", "सेब"),
        ("❤\ufe0f heart 1\ufe0f\u20e3", "heart-1"),
        ("../../etc\0/pass\ud800wd", "etc-pass-wd"),
        ("❤\ufe0f", "picture"),
        ("", "picture"),
    ],
)
def test_a_name_keeps_its_letters_and_loses_accents(text: str, name: str):
    assert slug(text) == name


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=300))
def test_any_text_gives_a_short_name_in_one_form(text: str):
    name = slug(text)
    assert 1 <= len(name) <= SLUG_LENGTH
    assert len(name.encode()) <= SLUG_BYTES
    assert unicodedata.normalize("NFC", name) == name
    assert slug(name) == name
    assert all(char == "-" or char.isalnum() or unicodedata.category(char)[0] == "M" for char in name)
    assert name.strip("-") == name
    assert "--" not in name


def test_letters_that_the_system_has_no_bytes_for_go():
    code = "import sys; sys.getfilesystemencoding = lambda: 'latin-1'\n"
    code += "from layerdiffuse_mcp.outputs.names import slug; print(ascii([slug('红 apple'), slug('红')]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['apple', 'picture']"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("101500-a-red-apple-7-foreground", "a-red-apple"),
        ("101500-a-red-apple-7-foreground-2", "a-red-apple"),
        ("101500-poster-composed", "poster"),
        ("101500-poster-composed-2", "poster"),
        ("101500-poster-2-composed", "poster-2"),
        ("101500-mug-cutout-12", "mug"),
        ("101500-mug-7-latent", "mug"),
        ("101500-mug-latent", "mug"),
        ("101500-红苹果-7-红", "红苹果"),
        ("101500-sheet-1a2b3c", "sheet-1a2b3c"),
        ("101500-walk-12", "walk-12"),
        ("Poster_composed", "Poster_composed"),
        ("holiday", "holiday"),
    ],
)
def test_the_words_of_our_names_come_without_what_we_put_around_them(name: str, words: str):
    assert words_in(Path(f"{name}.png")) == words


def test_a_name_made_of_ours_does_not_grow():
    name = f"101500-{file_name('poster', None, 'composed')}"
    for _ in range(3):
        name = f"101501-{file_name(words_in(Path(name)), None, 'composed')}"
    assert name == "101501-poster-composed.png"
