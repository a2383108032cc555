"""Whether a base has the layers that the rows of a recipe are made of, found out before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.data.models import resolve_model
from recipes.errors import RunError

if TYPE_CHECKING:
    from recipes.merge.schema import Recipe


def check_layers(recipe: Recipe, error: type[Exception]) -> str:
    """Look for them in a two-layer copy of the base without weights: seconds.

    Args:
        recipe: The recipe.
        error: Raised in one sentence when a row that it asks for is made of layers that the base does not have.

    Returns:
        A line for the pre-flight.
    """
    from recipes.merge.wemoe import check_blocks
    from recipes.merge.with_data import check_linear

    model = _skeleton(recipe)
    try:
        check_linear(recipe, model)
        check_blocks(recipe, model)
    except RunError as refused:
        raise error(str(refused)) from refused
    return f"looks at data or layers: {', '.join(recipe.of_layers())}"


def _skeleton(recipe: Recipe) -> Any:
    """The base's kind of model, with two layers and no weights."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from recipes.running.quiet import hush_libraries
    from twinmerge.routable import small_config
    from twinmerge.towers import PAIRS

    hush_libraries()
    config = AutoConfig.from_pretrained(resolve_model(recipe.base), trust_remote_code=False)
    config = config.vision_config if config.model_type in PAIRS else config  # of CLIP, the tower
    kind: Any = AutoModelForCausalLM if recipe.training.model == "causal" else AutoModel
    with torch.device("meta"):
        return kind.from_config(small_config(config), trust_remote_code=False)
