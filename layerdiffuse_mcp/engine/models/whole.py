"""diffusers with what it was kept from as the process started: pipelines need transformers (see `engine/startup.py`).

see_transformers("layered")             # before a pipeline's module is imported
from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import QwenImageLayeredPipeline
"""

import importlib.util
import sys

from diffusers.utils import import_utils

from layerdiffuse_mcp.errors import ModelError


def see_transformers(extra: str) -> None:
    """Let diffusers know that transformers is there.

    Raises:
        ModelError: it is not installed; names the extra that brings it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"This model needs transformers, which is not installed. Install it with the server: "
            f"pip install 'layerdiffuse-mcp[{extra}]', then start it again."
        )
    if not import_utils.is_transformers_available():
        import_utils._transformers_available = True  # pyright: ignore[reportPrivateUsage]
        sys.modules.pop("diffusers.loaders", None)  # it decided what it holds when it was imported
