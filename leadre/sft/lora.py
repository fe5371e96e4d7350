"""Low-rank adapters over the body, with the new tokens' rows trained in full."""

from collections.abc import Sequence
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from leadre.lm.model import AdLM


def adapt(lm: AdLM, *, rank: int, alpha: float, targets: Sequence[str], soft_tokens: bool = True) -> PeftModel:
    """Freeze the model and put adapters into its layers named in ``targets``, in place (Hu 2022).

    The rows of the S-ID and learnable tokens stay trainable by ``trainable_token_indices``: training
    whole embedding matrices instead would untie a tied head on the merge. ``merge_and_unload`` of
    the returned model folds everything into plain weights. With ``soft_tokens=False`` the learnable tokens' rows are
    frozen too.

    Raises:
        ValueError: If no layer has one of the names.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in lm.model.named_modules()}
    if unknown := sorted(set(targets) - names):
        raise ValueError(
            f"sft.tuning.lora.targets names {unknown}, but the model has no such layer: choose from {sorted(names)}"
        )
    frozen = set() if soft_tokens else set(lm.soft_ids)
    tokens = cast(nn.Embedding, lm.model.get_input_embeddings()).num_embeddings
    new = range(min(*lm.soft_ids, *lm.sid_offsets), tokens)
    adapters = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        trainable_token_indices=[token for token in new if token not in frozen],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(lm.model, adapters)
