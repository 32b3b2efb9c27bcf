"""Textual inversions: the numbers of diffusers' own way of putting vectors in, files as people have them."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl
from layerdiffuse_mcp.engine.text.inversions import read_inversions
from layerdiffuse_mcp.errors import LayerFileError
from tests.text.test_chunks import transformers_tokenizer

__all__ = ["transformers_tokenizer"]
WIDTHS = (16, 24)
PROMPT = "a photo of wizardly on a hill, wizardly"


class Loaded(TextualInversionLoaderMixin):
    """An encoder and a tokenizer that diffusers taught the word."""

    hf_device_map = None

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, vectors: Tensor) -> None:
        self.components = {"text_encoder": encoder, "tokenizer": tokenizer}
        self.load_textual_inversion({"wizardly": vectors}, token="wizardly", text_encoder=encoder, tokenizer=tokenizer)  # pyright: ignore

    def __call__(self, prompt: str):
        tokenizer, encoder = self.components["tokenizer"], self.components["text_encoder"]
        said = self.maybe_convert_prompt(prompt, tokenizer)
        tokens = tokenizer(said, padding="max_length", max_length=77, return_tensors="pt").input_ids  # pyright: ignore
        with torch.no_grad():
            return encoder(tokens, output_hidden_states=True)  # pyright: ignore


def narrow(width: int, *, projected: bool) -> tuple[CLIPTextModel, TextEncoder]:
    """The same random encoder as transformers' and as ours."""
    torch.manual_seed(width)
    shape = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
             "projection_dim": width, "vocab_size": 49_408, "hidden_act": "gelu"}  # fmt: skip
    config = CLIPTextConfig(**shape, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    theirs = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    ours = TextEncoder(TextConfig(**shape), projected).eval()
    state = {key.removeprefix("text_model."): tensor.clone() for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict({key: tensor for key, tensor in state.items() if not key.endswith("position_ids")})
    return theirs, ours


def tokenizer_like(tokenizer: CLIPTokenizer, tmp_path: Path, pad: str | None = None) -> CLIPTokenizer:
    """A copy that may learn words; `pad` fills up what is short."""
    tokenizer.save_pretrained(tmp_path)
    return CLIPTokenizer.from_pretrained(tmp_path, **({"pad_token": pad} if pad else {}))


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_context_of_sd15_is_that_of_diffusers(transformers_tokenizer: CLIPTokenizer, tmp_path: Path, vectors: int):
    theirs, ours = narrow(WIDTHS[0], projected=False)
    taught = torch.randn(vectors, WIDTHS[0])
    expected = Loaded(theirs, tokenizer_like(transformers_tokenizer, tmp_path), taught)(PROMPT)[0]
    made = encode_sd15(ours, [PROMPT], inversions={"wizardly": taught})
    assert torch.allclose(made, expected, atol=2e-5)
    assert not torch.allclose(made, encode_sd15(ours, [PROMPT]), atol=1e-2)


def test_both_contexts_and_the_pooled_vector_of_sdxl_are_those_of_diffusers(
    transformers_tokenizer: CLIPTokenizer, tmp_path: Path
):
    (theirs_l, ours_l), (theirs_g, ours_g) = narrow(WIDTHS[0], projected=False), narrow(WIDTHS[1], projected=True)
    taught_l, taught_g = torch.randn(2, WIDTHS[0]), torch.randn(2, WIDTHS[1])
    first = Loaded(theirs_l, tokenizer_like(transformers_tokenizer, tmp_path / "l"), taught_l)(PROMPT)
    second = Loaded(theirs_g, tokenizer_like(transformers_tokenizer, tmp_path / "g", "!"), taught_g)(PROMPT)
    made = encode_sdxl(ours_l, ours_g, [PROMPT], inversions=({"wizardly": taught_l}, {"wizardly": taught_g}))
    expected = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    assert torch.allclose(made.context, expected, atol=2e-5)
    assert torch.allclose(made.pooled, second.text_embeds, atol=2e-5)


def test_emphasis_multiplies_what_vectors_become():
    _, ours = narrow(WIDTHS[0], projected=False)
    taught = {"wizardly": torch.randn(2, WIDTHS[0])}
    plain = encode_sd15(ours, ["a wizardly cat"], emphasis="No norm", inversions=taught)
    louder = encode_sd15(ours, ["a (wizardly:1.5) cat"], emphasis="No norm", inversions=taught)
    assert torch.allclose(louder[0, 2:4], plain[0, 2:4] * 1.5)
    assert torch.equal(louder[0, 4:], plain[0, 4:])


def test_files_are_read_in_each_of_their_forms(tmp_path: Path):
    vectors = torch.randn(2, 16)
    for name, tensors in {"a1111": {"emb_params": vectors}, "diffusers": {"<word>": vectors[0]}}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    [taught] = read_inversions({name: tmp_path / f"{name}.safetensors" for name in ("a1111", "diffusers")}, (16,))
    assert torch.equal(taught["a1111"], vectors)
    assert torch.equal(taught["diffusers"], vectors[:1])
    save_file({"clip_g": torch.randn(2, 24), "clip_l": vectors}, tmp_path / "xl.safetensors")
    first, second = read_inversions({"xl": tmp_path / "xl.safetensors"}, WIDTHS)
    assert torch.equal(first["xl"], vectors)
    assert second["xl"].shape == (2, 24)
    with pytest.raises(LayerFileError, match=r"xl\.safetensors is no textual inversion that fits"):
        read_inversions({"xl": tmp_path / "xl.safetensors"}, (16,))
