"""The shipped files as checkpoints in a work folder, so that every stage can go on from them.

    python -m training.shipped --pocket layerdiffuse_mcp/pocket --work build/training

The text encoder learns the words of `concepts.py` and the looks that it does not know yet (`text.py`). Checkpoints that
are there are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from training import transparency, unet
from training.export import LAYERS
from training.text import Known, warm_up
from training.vocabulary import LOOKS, Subject, vocabulary

State = dict[str, torch.Tensor]


def known(pocket: Path, subjects: list[Subject]) -> Known:
    """What the shipped text encoder has learnt."""
    concepts = json.loads((pocket / "concepts.json").read_text())
    materials = {"", *concepts["materials"], *concepts.get("colours", [])}
    return Known(
        {number for number, subject in enumerate(subjects) if subject.words[0] in concepts["subjects"]},
        {number for number, look in enumerate(LOOKS) if look.material in materials},
    )


def checkpoint(state: State) -> dict[str, object]:
    """As `common.Run` saves it, with all of its time before it."""
    return {"step": 0, "used": 0.0, "module": state, "average": state}


def states(pocket: Path) -> dict[str, dict[str, object]]:
    """A checkpoint for each stage."""
    base = read_checkpoint(pocket / "pocket.safetensors")
    (text_encoder,) = base.text_encoders(torch.float32)
    ours, text = unet.networks()
    ours.load_state_dict(base.unet(torch.float32).state_dict())
    text.load_state_dict(text_encoder.state_dict())
    vae = base.vae(torch.float32)
    pair = transparency.pair(transparency.offset_encoder())
    for name in ("encoder", "decoder"):
        pair[name].load_state_dict(load_file(pocket / f"layer_sd15_vae_transparent_{name}.safetensors"))
    pair = pair.float()
    pair["encoder"].blocks[-1].weight.data /= pair["encoder"].output_scale  # it was folded in
    pair["encoder"].blocks[-1].bias.data /= pair["encoder"].output_scale
    return {
        "autoencoder": {"step": 0, "used": 0.0, "vae": vae.state_dict(), "scaling": vae.config["scaling_factor"]},
        "decoder": checkpoint(pair.state_dict()),
        "unet": checkpoint(torch.nn.ModuleDict({"unet": ours, "text": text}).state_dict()),
        **{
            method: checkpoint({name: value.float() for name, value in load_file(file).items()})
            for method in LAYERS
            if (file := pocket / f"{method}.safetensors").exists()
        },
    }


def restore(pocket: Path, work: Path) -> None:
    """Writes the checkpoints that `work` lacks."""
    for name, state in states(pocket).items():
        file = work / f"{name}.pt"
        if file.exists():
            continue
        if name == "unet":
            subjects = vocabulary(work)
            _, text = unet.networks()
            module = state["module"]
            assert isinstance(module, dict)
            text.load_state_dict({key.removeprefix("text."): module[key] for key in module if key.startswith("text.")})
            learnt = known(pocket, subjects)
            if len(learnt.subjects) < len(subjects) or len(learnt.looks) < len(LOOKS):
                warm_up(text, subjects, steps=400, rate=1e-3, known=learnt)
            module |= {f"text.{key}": value for key, value in text.state_dict().items()}
        torch.save(state, file)
        print("restored", file, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pocket", type=Path, default=Path("layerdiffuse_mcp/pocket"))
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    restore(arguments.pocket, arguments.work)
