"""How a training is spread over devices: a whole model on each (DDP), or a share of its weights on each (FSDP2)."""

import logging
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from leadre.training.config import ComputeConfig

log = logging.getLogger(__name__)


def strategy_of(compute: ComputeConfig, module: LightningModule) -> str | Strategy:
    """Lightning's strategy for a module; both spread strategies give the numbers of one device, but for rounding.

    ``fsdp`` is for modules that share their weights out in ``configure_model``, see `shard`; the others, the small
    networks, take ``ddp``. Lightning's own ``FSDPStrategy`` is the older FSDP1, and runs on GPUs alone.
    """
    if compute.strategy == "auto" or compute.processes == 1:
        return "auto"
    if compute.strategy == "fsdp" and is_overridden("configure_model", module):
        return ModelParallelStrategy(
            data_parallel_size=compute.processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one whole file, as without it
        )
    if compute.strategy == "fsdp":
        log.info("%s is trained by ddp: it does not share its weights out", type(module).__name__)
    return DDPStrategy(gradient_as_bucket_view=True)  # the gradients are in memory once, not twice


def shard(module: LightningModule) -> None:
    """Share the weights out over the devices, to be called in ``configure_model``; nothing without ``fsdp``.

    Each layer of the language model is gathered when it is needed and freed after it; the rest (embeddings, head,
    last norm) is gathered for a whole step, so that a step may use any part of the model in any way, as long as all
    ranks call the same layers. Tied weights stay tied.

    With ``bf16-mixed`` a layer is gathered in bfloat16, as it is multiplied in, and its gradients are added up in
    float32. Our choice: its norms are rounded too, which ``ddp`` does not do.
    """
    if module.device_mesh is None or isinstance(module, FSDPModule):
        return
    mesh = module.device_mesh["data_parallel"]
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in list(_layers(module)):
        fully_shard(layer, mesh=mesh, mp_policy=half if module.trainer.precision == "bf16-mixed" else plain)
    fully_shard(module, mesh=mesh, mp_policy=plain)
    for name in ("training_step", "validation_step"):  # Lightning calls them, and not `forward`
        register_fsdp_forward_method(module, name)


def whole_weights(module: LightningModule) -> None:
    """Make the weights that `shard` shared out whole again, on the CPU of every rank; nothing if none are.

    All ranks must call it. The module can then be saved, and no longer trained.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # what a validation left gathered
    wholes: dict[nn.Parameter, nn.Parameter] = {}  # tied ones are one
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and isinstance(weight, DTensor):
                if weight not in wholes:
                    wholes[weight] = nn.Parameter(whole(weight.detach()).cpu(), weight.requires_grad)
                part._parameters[name] = wholes[weight]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of the Transformers models inside, which alone know the names of their kinds."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return (part for part in module.modules() if type(part).__name__ in names)
