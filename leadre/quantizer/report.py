"""What the stage tells of its codes: ``diagnostics.json``, a line in the log, and what to be warned of."""

import logging
from typing import Any

import polars as pl
import torch

from leadre import tables
from leadre.quantizer import diagnostics

DRIFT = 1.5
"""Our choice: new texts so many times farther off than known ones from one another are worth a warning."""
log = logging.getLogger(__name__)


def of_codes(kind: str, today: pl.DataFrame, sizes: list[int]) -> dict[str, Any]:
    """What the codes of today's ads tell (``text_key``, ``codes``), and their collisions over distinct texts beside.

    Args:
        kind: The quantizer's.
        today: One row an ad.
        sizes: Number of codes of each level.
    """
    codes = torch.from_numpy(tables.matrix(today["codes"], len(sizes))).long()
    groups = diagnostics.prefix_groups(codes)
    collisions = diagnostics.group_collisions(groups[-1])
    texts = torch.from_numpy(today["text_key"].is_first_distinct().to_numpy(writable=True))
    counts = [torch.bincount(level, minlength=size) for level, size in zip(codes.T, sizes, strict=True)]
    return {
        "kind": kind,
        "codebook_sizes": sizes,
        "num_ads": len(today),
        "num_distinct": int(texts.sum()),
        "collision_rate": collisions.rate,
        "collision_rate_distinct": diagnostics.group_collisions(groups[-1][texts]).rate,
        "colliding_share": collisions.colliding_share,
        "largest_group": collisions.largest_group,
        "usage": [float(diagnostics.usage(level)) for level in counts],
        "perplexity": [float(diagnostics.perplexity(level)) for level in counts],
        "dead_codes": [int((level == 0).sum()) for level in counts],
        "counts": [level.tolist() for level in counts],
        "bits": diagnostics.group_bits(groups),
    }


def tell(report: dict[str, Any], rows: pl.DataFrame, known: pl.DataFrame) -> None:
    """Log a report on today's ads, and warn of texts that changed since ``known`` was coded, and of drift."""
    log.info(
        "%s ads, %s distinct texts; before the extra code %.2f %% collide, of the distinct ones %.2f %%",
        *(report["num_ads"], report["num_distinct"]),
        *(100 * report["collision_rate"], 100 * report["collision_rate_distinct"]),
    )
    then = known.select("ad_id", pl.col("text_key").alias("then"))
    changed = rows.join(then, on="ad_id").filter(pl.col("text_key") != pl.col("then"))["ad_id"]
    if len(changed):
        log.warning(
            "%s ads have another text than when they were coded and keep their codes (one is %r)",
            len(changed),
            changed[0],
        )
    new = report["new"]
    if new and new["drift"] is not None and new["drift"] > DRIFT:
        log.warning(
            "the %s new texts are %.1f times farther from the nearest known one than known texts are from one another: "
            "the quantizer has not seen their like; when this lasts, index anew",
            *(new["num_texts"], new["drift"]),
        )
