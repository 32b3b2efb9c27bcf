"""The folder of textual inversions: what is found in it, by headers alone."""

from pathlib import Path

from layerdiffuse_mcp.hub.inversions import read_inversions
from tests.hub.files import tensors, write


def test_files_are_found_by_name_with_their_vectors_and_widths(tmp_path: Path):
    folder = tmp_path / "embeddings"
    write(folder / "easynegative.safetensors", tensors({"emb_params": (8, 768)}))
    write(folder / "styles" / "dark style.safetensors", tensors({"<dark>": (768,)}))
    write(folder / "xl.safetensors", tensors({"clip_g": (2, 1280), "clip_l": (2, 768)}))
    write(folder / "styles" / "XL.safetensors", tensors({"emb_params": (1, 768)}))
    found = read_inversions(tmp_path)
    assert {name: (one.vectors, one.widths, one.problem) for name, one in found.items()} == {
        "easynegative": (8, (768,), ""), "dark style": (1, (768,), ""), "xl": (2, (768, 1280), "")
    }  # fmt: skip
    write(folder / "xl.safetensors", tensors({"emb_params": (30, 768)}))
    assert read_inversions(tmp_path)["xl"].vectors == 30


def test_what_cannot_be_used_says_why_and_what_to_do(tmp_path: Path):
    assert read_inversions(tmp_path) == {}
    folder = tmp_path / "embeddings"
    for name, content in {
        "old.pt": b"pickle", "cut.safetensors": b"x", "two.safetensors": tensors({"a": (1, 8), "b": (1, 8)}),
        "long.safetensors": tensors({"emb_params": (76, 8)}),
        "odd.safetensors": tensors({"clip_l": (1, 8), "clip_g": (2, 8)}),
        "none.safetensors": tensors({"emb_params": (0, 8)}),
    }.items():  # fmt: skip
        write(folder / name, content)
    problems = {name: one.problem for name, one in read_inversions(tmp_path).items()}
    assert "a pickle, which can run code" in problems["old"]
    assert "get the .safetensors file" in problems["old"]
    assert "cut.safetensors is not a safetensors file" in problems["cut"]
    assert "holds 2 tensors" in problems["two"]
    for name in ("long", "odd", "none"):
        assert f"{name}.safetensors is no textual inversion of 1 to 75 vectors" in problems[name]


def test_a_safetensors_file_is_used_before_a_pickle_of_its_name(tmp_path: Path):
    write(tmp_path / "embeddings" / "charm.pt", b"pickle")
    write(tmp_path / "embeddings" / "deep" / "charm.safetensors", tensors({"emb_params": (1, 8)}))
    assert read_inversions(tmp_path)["charm"].problem == ""
