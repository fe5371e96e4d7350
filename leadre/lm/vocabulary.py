"""What the tokens of a model folder mean, read without its weights."""

import json
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

ABOUT = "leadre.json"
"""The file beside the weights that says which tokens are S-ID codes and which are learnable."""


class Vocabulary(NamedTuple):
    """The tokens of a language model that knows S-IDs.

    Attributes:
        tokenizer: Its tokenizer for text.
        sid_offsets: Token id of code 0 of each level: code ``c`` of level ``l`` is ``sid_offsets[l] + c``.
        soft_ids: Token ids of the learnable tokens.
    """

    tokenizer: PreTrainedTokenizerFast
    sid_offsets: tuple[int, ...]
    soft_ids: tuple[int, ...]


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer and the token ids of a folder that `leadre.lm.model.save` wrote.

    Raises:
        ValueError: If the folder has no ``leadre.json``.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(
            f"folder is {folder}, which has no {ABOUT}, so it is not a model that knows S-IDs: "
            "give a folder written by leadre.lm.model.save"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return Vocabulary(tokenizer, tuple(about["sid_offsets"]), tuple(about["soft_ids"]))
