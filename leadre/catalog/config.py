"""Settings of the catalog."""

from typing import Annotated, Literal

from pydantic import Field

from leadre.settings import settings


@settings
class CatalogConfig:
    """Which ads may be generated, and how many may share their codes; told in ``conf/catalog/default.yaml``."""

    include: Literal["all", "active"]
    as_of: str | None
    spare_extra_codes: Annotated[int, Field(ge=0)]
    max_extra_codes: Annotated[int, Field(ge=1)]
    overflow: Literal["error", "spill"]
