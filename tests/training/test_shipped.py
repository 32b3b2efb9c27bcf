"""The shipped files as checkpoints: exported again they are the same, and new words leave the known ones alone."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.hub.catalog import pocket_folder
from training import shipped, unet
from training.captions import Tokens
from training.export import export
from training.text import Known, contexts, warm_up
from training.vocabulary import Subject


def write_pictures(work: Path) -> None:
    """Two of an apple, one of them held out."""
    np.save(work / "pictures.npy", np.full((2, 128, 128, 4), 255, np.uint8))
    rows = [{"name": "red apple", "style": "3d", "held_out": held} for held in (False, True)]
    (work / "pictures.json").write_text(json.dumps(rows))


def test_checkpoints_of_the_shipped_files_export_to_the_same_files(tmp_path: Path):
    write_pictures(tmp_path)
    for name, state in shipped.states(pocket_folder()).items():
        torch.save(state, tmp_path / f"{name}.pt")
    export(tmp_path, tmp_path / "out", draft=False)
    files = sorted(pocket_folder().glob("*.safetensors"))
    assert [file.name for file in sorted((tmp_path / "out").glob("*.safetensors"))] == [file.name for file in files]
    for file in files:
        ours, again = load_file(file), load_file(tmp_path / "out" / file.name)
        assert ours.keys() == again.keys()
        assert [name for name in ours if not torch.equal(ours[name], again[name])] == []


def test_an_encoder_that_knows_every_word_is_restored_as_it_is(tmp_path: Path):
    write_pictures(tmp_path)
    shipped.restore(pocket_folder(), tmp_path)
    restored = torch.load(tmp_path / "unet.pt", weights_only=True)["module"]
    torch.testing.assert_close(restored, shipped.states(pocket_folder())["unet"]["module"], rtol=0, atol=0)


def test_what_the_shipped_encoder_knows_is_told_by_its_concepts():
    subjects = [Subject([word], {}) for word in ("sword", "red apple", "penguin", "torch")]
    known = shipped.known(pocket_folder(), subjects)
    listed = json.loads((pocket_folder() / "concepts.json").read_text())
    assert known.subjects == {number for number, s in enumerate(subjects) if s.words[0] in listed["subjects"]}
    assert {1, 2} <= known.subjects
    assert {0, 1, 2, 3} <= known.looks


def moved(text: TextEncoder, before: TextEncoder, said: str) -> float:
    """How far the states after these words are from what they were."""
    ids = Tokens()([said])[:, :12]
    with torch.no_grad():
        return float((contexts(text, ids) - contexts(before, ids)).square().mean())


def test_a_known_word_stays_where_it_was_while_a_new_one_is_learnt():
    _, before = unet.networks()
    subjects = [Subject([word], {"3d": np.zeros((1, 1, 4), np.uint8)}) for word in ("apple", "key", "sword", "map")]
    held, free = deepcopy(before), deepcopy(before)
    warm_up(held, subjects, steps=12, rate=5e-4, known=Known({0, 1}, {0, 1, 2, 3}))
    warm_up(free, subjects, steps=12, rate=5e-4)
    assert moved(held, before, "an apple") < 0.5 * moved(free, before, "an apple")
    assert moved(held, before, "a sword") > moved(held, before, "an apple")
