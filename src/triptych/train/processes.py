"""The processes that train together."""

import os


def is_main_process() -> bool:
    """Whether this is the first of them, as their launcher numbers them; True for a single process."""
    return os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Whether they compute on processors. Accelerate has to know it, else each would train alone."""
    import torch
    from accelerate.utils import parse_flag_from_env

    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
