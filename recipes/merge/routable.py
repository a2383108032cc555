"""Whether the experts of a base can be routed, found out before any of them is trained."""

from __future__ import annotations

from recipes.data.models import is_here, resolve_model
from recipes.errors import RecipeError, RunError


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


def check_images_taken(base: str, size: int) -> str:
    """Look at how a base sees images, and try a two-layer copy of it on one of that size.

    Args:
        base: As in the recipe, of tasks of images.
        size: ``training.image_size``.

    Returns:
        A line for the pre-flight.

    Raises:
        RecipeError: When the base has no processor that tasks can use, or takes no such images.
    """
    if not is_here(base):
        return "images: the base is not here as a folder, so that its processor is looked at when the run starts"
    from transformers import AutoConfig

    from recipes.data.looks import check_taken, look_of
    from recipes.running.quiet import hush_libraries
    from twinmerge.routable import small_model

    hush_libraries()
    try:
        look = look_of(base, size)
        check_taken(small_model(AutoConfig.from_pretrained(resolve_model(base), trust_remote_code=False)), look)
    except RunError as error:
        raise RecipeError(str(error)) from error
    how = "as its processor cuts them" if look.processed else "resized whole"
    return f"images: {look.size} x {look.size} pixels, {how}"
