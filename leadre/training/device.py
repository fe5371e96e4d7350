"""Which device works: for Lightning's trainings, and for what Lightning does not run."""

import os
from typing import Literal

import torch

from leadre.training.config import ComputeConfig


def accelerator_of(compute: ComputeConfig) -> Literal["cpu", "gpu"]:
    """The accelerator; ``auto`` is a CUDA GPU where there is one, else the CPU."""
    if compute.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return compute.accelerator


def set_up_device(compute: ComputeConfig) -> torch.device:
    """Set the number of CPU threads, and name this process's one device for embedding, references and generation."""
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    if accelerator_of(compute) == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)  # some kernels are launched on the current device, whatever their tensors'
    return device
