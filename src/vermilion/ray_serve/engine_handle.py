"""The engines of one model as Ray Serve reaches them."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from vermilion.errors import EngineFailure, Overloaded
from vermilion.ray_serve.answer_items import Item, ReplicaLost, ReplicaRefusal
from vermilion.ray_serve.replica_backend import NoReplica
from vermilion.types import Finish, Request

_log = logging.getLogger(__name__)


class EngineHandle:
    """As `Replicas`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._generate = handle.options(method_name="generate", stream=True)
        self._attach = handle.options(method_name="attach")

    async def generate(self, request: Request, folder: str) -> AsyncGenerator[list[Item], None]:
        """Raises `ReplicaLost`, `Overloaded`, `NoReplica` and `EngineFailure`."""
        response = self._generate.remote(request, folder)
        ended = False
        try:
            async for batch in response:
                ended = bool(batch) and isinstance(batch[-1], Finish | ReplicaRefusal)
                yield batch
        except BackPressureError as error:
            raise Overloaded(f"Every engine is busy and the queue is full: {error}") from None
        except DeploymentUnavailableError:
            raise NoReplica("No engine of this model can be started. See the log of Ray Serve.") from None
        except RayTaskError as error:
            _log.exception("an engine failed")
            raise EngineFailure("The engine failed while working on this request.") from error
        except (RayError, RayServeException) as error:
            _log.warning("an engine is gone: %s", type(error).__name__)
            raise ReplicaLost(type(error).__name__) from None
        finally:
            if not ended:
                response.cancel()

    async def attach(self, name: str, folder: str) -> ReplicaRefusal | None:
        """Raises `EngineFailure`."""
        try:
            refusal: ReplicaRefusal | None = await self._attach.remote(name, folder)
        except (RayError, RayServeException) as error:
            raise EngineFailure(f"No engine could read the adapter: {type(error).__name__}.") from None
        return refusal
