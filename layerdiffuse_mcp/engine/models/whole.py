"""diffusers with what it was kept from as the process started: pipelines need transformers (see `engine/startup.py`).

see_transformers("layered")             # before a pipeline's module is imported
from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import QwenImageLayeredPipeline
"""

import sys

from diffusers.utils import import_utils

from layerdiffuse_mcp.installed import check


def see_transformers(extra: str) -> None:
    """Let diffusers know that transformers is there.

    Raises:
        ModelNotFound: it is not installed; names the extra that brings it.
    """
    check(extra, "This model")
    if not import_utils.is_transformers_available():
        import_utils._transformers_available = True  # pyright: ignore[reportPrivateUsage]
        sys.modules.pop("diffusers.loaders", None)  # it decided what it holds when it was imported
