"""The matting networks that `cut_out` can use for photographs: which file, and what it takes and gives.

Commits, sizes and checksums were read from published code that uses these files, names and numbers of the input from
the repositories' preprocessor_config.json. The files themselves were never at hand: what loads them is tested on a
graph of the same form.
"""

from layerdiffuse_mcp.families.entries import GB, Frozen, HubFile


class MattingNetwork(Frozen):
    """A published network from a photograph to its subject's alpha, as an ONNX graph.

    It takes one float32 tensor (1, 3, side, side): RGB, 0 to 1, less `mean`, over `deviation`. It gives (1, 1, H, W):
    alpha, or where `logits` is true its logits. `memory` is what running it takes, in bytes, `extra` what has to be
    installed beside the package for it.
    """

    name: str
    description: str
    remote: HubFile
    memory: int
    side: int = 1024
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    logits: bool = True
    extra: str = "cutout"


_NETWORKS = (
    MattingNetwork(
        name="birefnet-lite",
        description="BiRefNet with a small backbone (Swin-T): subjects of any kind",
        remote=HubFile(
            repo="onnx-community/BiRefNet_lite-ONNX",
            path="onnx/model.onnx",
            bytes=224_005_088,
            sha256="5600024376f572a557870a5eb0afb1e5961636bef4e1e22132025467d0f03333",
            licence="MIT",
            revision="de15b22ba131738a16dff04aab8bdf8dc32e3ac1",
        ),
        memory=10 * GB,
    ),
    MattingNetwork(
        name="birefnet",
        description="BiRefNet: subjects of any kind, finer than the lite one",
        remote=HubFile(
            repo="onnx-community/BiRefNet-ONNX",
            path="onnx/model.onnx",
            bytes=972_666_916,
            sha256="58f621f00f5d756097615970a88a791584600dcf7c45b18a0a6267535a1ebd3c",
            licence="MIT",
            revision="534d3c82d3bb8b2f0867db6dfbc3a525b8e42f67",
        ),
        memory=13 * GB,
    ),
)

MATTING = {network.name: network for network in _NETWORKS}
"""Every matting network by its name; the first is the default. Source: Zheng et al., "Bilateral Reference for
High-Resolution Dichotomous Image Segmentation", arXiv:2401.03407."""
