"""What identifies source files: their names and contents, not where they lie."""

import hashlib
from typing import assert_never

from leadre.data.config import AmazonBeautyData, CompleteJourneyData, DataConfig, SyntheticData, TablesData
from leadre.data.importers import amazon_beauty, completejourney, tables


def fingerprint(config: DataConfig) -> str:
    """The sha256 over names and contents of the files that the source will be read from; empty for a simulated world.

    Raises:
        ValueError: If a file is missing.
    """
    match config:
        case SyntheticData():
            return ""
        case CompleteJourneyData():
            paths = completejourney.sources(config.root)
        case AmazonBeautyData():
            paths = amazon_beauty.sources(config.root)
        case TablesData():
            paths = list(tables.sources(config.root).values())
        case _:
            assert_never(config)
    total = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
