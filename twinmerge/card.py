"""The model card of a twin folder: what it holds and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]

_START = """---
library_name: transformers
tags: [{tags}]
---

# {name}

"""


def model_card(description: Mapping[str, Any], name: str, recipe: str = "") -> str:
    """README.md of a twin folder: what it holds, how to load it, and the recipe that made it."""
    tasks = ", ".join(description["tasks"])
    base = description.get("base", "the base")
    left = description.get("left_out") or {}
    lost = "".join(f"{', ' if i else ''}{share:.2%} of {task}" for i, (task, share) in enumerate(left.items()))
    told = (
        "\nWhat the experts changed and their folders do not hold is left to the shared expert (of the squared "
        f"differences: {lost}).\n"
        if any(left.values())
        else ""
    )
    norms = (
        "\nRunning statistics of batch norms are averaged in the shared expert, and mixed for every input as the\n"
        "parameters are in the routed model; nothing was recalibrated.\n"
        if description.get("batch_norms")
        else ""
    )
    made = f"\n## Recipe\n\n```yaml\n{recipe.rstrip()}\n```\n" if recipe else ""
    if description.get("ranks") == {}:
        return _START.format(tags="multi-task", name=name) + _dense(description, tasks, made)
    start = _START.format(tags="merge, twin-merging, lora", name=name)
    return (
        start
        + f"""\
A Twin-Merging model (Lu et al. 2024, arXiv 2406.15479): a shared expert merged from fine-tunes of {base}, one low-rank
exclusive expert per task ({tasks}), and a router that gives every input its own mixture.

| call | gives |
|---|---|
| `AutoModel….from_pretrained(folder)` | the shared expert, a {description["base_class"]}; no code of this folder |
| `PeftModel.from_pretrained(shared, folder + "/experts/<task>")` | the shared expert with one exclusive expert |
| `AutoModel….from_pretrained(folder, trust_remote_code=True)` | the routed model; runs this folder's modeling_twin.py |
| `twinmerge.load(folder, mode="routed")` | the same, manifest verified, no code of this folder run |

For a fixed mixture with PEFT use `add_weighted_adapter(..., combination_type="cat")`; `"linear"` averages the factors A
and B apart, which is another and wrong model. PEFT mixes matrices only, and its `merge_and_unload` adds to a tied
output layer twice: where experts also changed norms or biases, or to merge tied weights, use `twinmerge.densify`.
{told}{norms}{made}"""
    )


def _dense(description: Mapping[str, object], tasks: str, made: str) -> str:
    """The card of a folder without exclusive experts."""
    return f"""\
One dense {description["base_class"]} with a head for every task ({tasks}); it has
no exclusive experts, and without a router whoever asks names the task.

| call | gives |
|---|---|
| `AutoModel.from_pretrained(folder)` | the model without its heads; no code of this folder |
| `twinmerge.load(folder).classify(**inputs, head="<task>")` | a task's answer; no code of this folder run |
| `AutoModelFor….from_pretrained(folder, trust_remote_code=True, head="<task>")` | the classifier of one task |

The last, of sequences or images, runs this folder's modeling_twin.py.
{made}"""
