"""Whether the experts of a base can be routed, found out before any of them is trained."""

from __future__ import annotations

from recipes.data.models import is_here, resolve_model


def check_routable(base: str, frozen: tuple[str, ...], error: type[Exception]) -> str:
    """Route a two-layer copy of the base with random weights and experts, against dense merges: seconds, no download.

    Args:
        base: as in the recipe.
        frozen: parameters whose name contains one of these are not trained.
        error: raised in one sentence when an input's own mixture cannot reach some part of the model.

    Returns:
        A line for the pre-flight.
    """
    if not is_here(base):
        return "routing: the base is not here as a folder, so that it is tried when the run starts"
    from transformers import AutoConfig

    from recipes.running.quiet import hush_libraries
    from twinmerge import routable

    hush_libraries()
    try:
        name, worst = routable.check_routable(
            AutoConfig.from_pretrained(resolve_model(base), trust_remote_code=False), frozen
        )
    except ValueError as refused:
        raise error(f"base: {str(refused).rstrip('.')}") from refused
    return f"routing: a two-layer {name} differs from dense merges by {worst:.0e}"
