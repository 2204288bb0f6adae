"""What the clouds call a served model: their names have an account, a region, a provider and a version."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vermilion.errors import ModelNotFound
from vermilion.serving.generation import model_names
from vermilion.serving.serve_config import ServeConfig
from vermilion.types import ModelInfo

_REGION = re.compile(r"^(?:us|us-gov|eu|ap|apac|au|ca|jp|sa|global)\.")
_PROVIDER = re.compile(r"^[a-z0-9-]+\.")
_VERSION = re.compile(r"(?:-v\d+)?:\d+(?::\w+)?$|-v\d+$")
_LONGEST = 2048
"""Characters of a model's id at Bedrock."""


def cloud_model(id: str, model: ModelInfo, config: ServeConfig) -> str:
    """The name by which the service knows `id`, a name or ARN such as
    `arn:aws:bedrock:us-east-1:1:inference-profile/us.inception.mercury-2-v1:0`. Raises `ModelNotFound`."""
    for name in spellings(id[:_LONGEST]):
        if model_names.answers_to(name, model, config):
            return name
    raise ModelNotFound(id[:100], model_names.names(model, config))


def spellings(id: str) -> Iterator[str]:
    """`id` itself, then less and less of it."""
    yield id
    bare = id
    if id.startswith("arn:"):
        bare = id.rpartition("/")[2] if "/" in id else id.rpartition(":")[2]
        yield bare
    for left_out in (_REGION, _PROVIDER):
        bare = left_out.sub("", bare)
        yield bare
        yield _VERSION.sub("", bare)
