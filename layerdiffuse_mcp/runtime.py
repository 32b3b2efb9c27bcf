"""What must be in the environment before torch is imported, for whoever is about to import it."""

import os

DEFAULTS = {
    # Threads that spin while they wait stall each other as soon as anything else runs on the machine: with
    # both cores also busy elsewhere, one picture of the pocket model took 229 s spinning and 4 s sleeping.
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def prepare_environment() -> None:
    """Set what the user has not set; of no effect once torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
