"""What identifies the files that embeddings are made from, besides the ads."""

from pathlib import Path
from typing import assert_never

from leadre.embedding.config import EmbeddingConfig, HashingConfig, LSAConfig, TransformerConfig, VectorsConfig
from leadre.embedding.weights import find, sha256


def fingerprint(config: EmbeddingConfig) -> str:
    """Of an encoder's weights or of a file of vectors; empty where the config alone says all.

    Raises:
        ValueError: If the weights or the file are not there.
    """
    match config:
        case LSAConfig() | HashingConfig():
            return ""
        case TransformerConfig():
            return find(config).fingerprint
        case VectorsConfig():
            path = Path(config.path)
            if not path.is_file():
                raise ValueError(
                    f"embedding.path is {config.path!r}, but there is no such file: give a Parquet file with the "
                    "columns ad_id and vector"
                )
            return sha256(path)
        case _:
            assert_never(config)
