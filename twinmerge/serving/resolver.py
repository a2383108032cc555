"""vLLM's plug-in: a request for the model `twin@32,20,12` is served by that mixture of a twin folder's experts.

Entry point of the group ``vllm.general_plugins``. A plug-in gets no arguments, so its settings come by environment:
``GAPBRIDGE_TWIN``, the twin folder (the plug-in does nothing without it); ``GAPBRIDGE_MIXTURES``, where adapters are
written; ``GAPBRIDGE_MIXTURES_LIMIT``, how many at most (256). On CPUs it also puts `cpu_kernels` in the place of vLLM's
own products, which are slow and take a request without an adapter for one of the last slot's;
``GAPBRIDGE_CPU_KERNELS=0`` leaves vLLM's, for who wants to compare.
"""

from __future__ import annotations

import asyncio
import logging
import os

FOLDER, CACHE, LIMIT = "GAPBRIDGE_TWIN", "GAPBRIDGE_MIXTURES", "GAPBRIDGE_MIXTURES_LIMIT"
KERNELS = "GAPBRIDGE_CPU_KERNELS"
log = logging.getLogger("vllm.gapbridge")


def register() -> None:
    """Called in every process of a vLLM server; only the one that answers requests ever resolves a name.

    Raises:
        CheckpointError: when the folder's experts cannot be served as adapters.
        ValueError: when the cache is not named, or the limit is no whole number.
    """
    if FOLDER not in os.environ:
        return
    if CACHE not in os.environ:
        raise ValueError(f"{FOLDER} is set and {CACHE} is not; name the folder that mixtures are written to.")
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
    from vllm.platforms import current_platform

    from twinmerge.errors import CheckpointError
    from twinmerge.serving import cpu_kernels
    from twinmerge.serving.mixtures import MixtureCache

    if current_platform.is_cpu() and os.environ.get(KERNELS, "1") != "0":
        cpu_kernels.install()
    cache: list[MixtureCache] = []

    def resolve(name: str) -> str | None:
        if not cache:  # read on first use: most processes never resolve
            limit = int(os.environ.get(LIMIT, "256"))
            cache.append(MixtureCache(os.environ[FOLDER], os.environ[CACHE], limit))
        path = cache[0].path(name)
        return None if path is None else str(path)

    class TwinResolver(LoRAResolver):  # type: ignore[misc]
        """Makes the adapter of a mixture on its first request."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The mixture's adapter; None, which vLLM answers with 404, for another name or where the cache is full."""
            try:
                path = await asyncio.to_thread(resolve, lora_name)  # the event loop keeps serving meanwhile
            except CheckpointError as error:
                log.warning("%s cannot be served: %s", lora_name, error)
                return None
            return None if path is None else LoRARequest(lora_name, 1, path)  # the server puts its own number

    LoRAResolverRegistry.register_resolver("twin", TwinResolver())
