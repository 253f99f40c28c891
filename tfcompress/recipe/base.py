"""What all parts of a recipe have in common: keys that are checked, and their ranges."""

from typing import Annotated

import pydantic
from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Step = Annotated[int, Field(ge=0)]


class Keys(pydantic.BaseModel):
    """Keys with defaults; an unknown key or a value of another type is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)
