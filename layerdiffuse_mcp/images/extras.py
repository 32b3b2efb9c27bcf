"""Whether the extra `cutout` is installed; nothing of it is imported."""

from importlib.util import find_spec

from layerdiffuse_mcp.errors import ModelNotFound


def check_installed() -> None:
    """Make sure that the extra is here.

    Raises:
        ModelNotFound: it is not; says how to install it.
    """
    if lacking := [name for name in ("onnxruntime", "onnx") if find_spec(name) is None]:
        raise ModelNotFound(
            f"Cutting out photographs needs {' and '.join(lacking)}: run `pip install 'layerdiffuse-mcp[cutout]'` and "
            "restart the server. A picture before one colour, or one whose empty scene is at hand, needs no model: "
            "give background."
        )
