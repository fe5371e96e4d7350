"""The device for work that Lightning does not run: embedding, reference log-probabilities, generation."""

import torch

from leadre.training.config import ComputeConfig


def set_up_device(compute: ComputeConfig) -> torch.device:
    """Set the number of CPU threads, and name the one device to work on; ``auto`` is a GPU where there is one."""
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    match compute.accelerator:
        case "auto":
            return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        case "gpu":
            return torch.device("cuda")
        case name:
            return torch.device(name)
