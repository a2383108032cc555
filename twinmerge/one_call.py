"""From folders to a twin in one call: read every expert, merge, give the twin its heads, and its router where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from gapbridge.arguments import Seed, check_arguments
from twinmerge.artefact import check_task_names
from twinmerge.checkpoints import Checkpoint, inspect_checkpoint
from twinmerge.errors import CheckpointError
from twinmerge.exclusive import Exclusive, RankPolicy, rank_policy
from twinmerge.folders import Expert, read_folder
from twinmerge.local import local_folder
from twinmerge.merging import Method, merge, merge_lora
from twinmerge.methods import find, options_for, options_of
from twinmerge.modeling_twin import Router
from twinmerge.routable import check_routable
from twinmerge.sight import check_sight
from twinmerge.towers import load_body, tower_of
from twinmerge.twin_mixin import TwinMixin
from twinmerge.unlabelled import (
    Pictures,
    check_read,
    check_router,
    image_processor,
    pictures_of,
    read_picture,
    router_from_images,
    router_from_texts,
)
from twinmerge.vocabulary import fit_vocabulary

__all__ = ["combine", "merge_folders", "named", "stored_format"]


def merge_folders(
    base: str | Path,
    folders: Mapping[str, str | Path],
    *,
    method: Method = "task_arithmetic",
    rank: RankPolicy | None = None,
    router: str | Router | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    images: Mapping[str, Pictures] | None = None,
    vocabulary: str = "strict",
    labels: Mapping[str, Sequence[str]] | None = None,
    dense: str | None = None,
    seed: Seed = 0,
    **options: object,
) -> TwinMixin:
    """Merge folders that plain transformers or PEFT wrote into a routed twin.

    Args:
        base: the experts' common base, a folder or a Hub name; of CLIP and its kin the tower that sees is merged.
        folders: task -> an expert's folder or Hub name; at least two.
        method: of the shared expert: a name that `twinmerge.methods.methods` lists, or a function, see `merge`.
        rank: the rank of every exclusive expert, such as 8, or exactly one rank policy of `exclusive_experts`, such as
            {"energy": 0.9}; density 0.1 when not given. With a fixed rank, adapters are merged as exact products of
            their factors by `average` and `task_arithmetic`.
        router: a trained `Router`; or `knn` (no training), `linear` or `mlp`, made from `texts` or `images`; None
            leaves the twin without, so that a forward takes `router_weights`.
        texts: task -> unlabelled texts, at least two each, for a router that is made here.
        images: of a base that reads images, task -> a folder of unlabelled images, or a list of files and PIL images,
            likewise; they are read by the base's own image processor.
        vocabulary: `strict`, `pad` or `union` (see `twinmerge.vocabulary`).
        labels: task -> label names in the order of the head's outputs, of tasks whose folder does not name them.
        dense: which vectors the exclusive experts keep, see `merge`.
        seed: of the sketches, of the router's training, and of a method that draws at random, such as `dare`.
        options: of the method, such as `scale`.

    Returns:
        The twin in eval mode: `twin.classify(**inputs, head="spam")`; `twin.tokenizer_of_union` where one was made. It
        is in the number format of the files where base and whole experts share a half one, and in float32 otherwise.

    Raises:
        CheckpointError: for a folder that cannot be read exactly, or one whose own image processor makes other tensors
            of an image than the base's.
        ValueError: for an argument of another kind, an unknown option, a router without texts or images, or texts,
            images or labels of a task that has no folder.
    """
    check_arguments(merge_folders, locals())
    check_task_names(list(folders))
    options_for(find(method), options, list(folders))
    rank = rank_policy({"density": 0.1} if rank is None else rank)
    pictures = None if images is None else {task: pictures_of(task, given) for task, given in images.items()}
    check_router(router, texts, pictures, list(folders))
    if odd := next((task for task in labels or {} if task not in folders), None):
        raise ValueError(f"labels are given for '{odd}', which is no task; the tasks are {', '.join(folders)}.")
    places = {task: local_folder(where) for task, where in folders.items()}
    where = local_folder(base)
    model = load_body(where)
    check_read(model, texts, images)
    if model.main_input_name == "pixel_values":
        check_sight(where, places)
    headers = tower_of(inspect_checkpoint(where))
    experts = {
        t: named(read_folder(f, where, model, headers=headers, vocabulary=vocabulary), (labels or {}).get(t))
        for t, f in places.items()
    }
    if odd := next((task for task in labels or {} if experts[task].head is None), None):
        raise CheckpointError(f"labels are given for '{odd}', whose folder has no head to name; leave them out.")
    experts, tokenizer = fit_vocabulary(model, experts, vocabulary, where, places)
    check_routable(model.config)
    twin = combine(model, experts, method, rank, dense=dense, seed=seed, **options)
    twin.to(getattr(torch, stored_format(headers, [inspect_checkpoint(place) for place in places.values()])))
    if isinstance(router, str) and pictures is not None:
        processor = image_processor(where)
        pixels = {task: map(partial(read_picture, processor), listed) for task, listed in pictures.items()}
        router = router_from_images(twin, router, pixels, seed)
    elif isinstance(router, str):
        words = tokenizer or AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        router = router_from_texts(twin, router, words, texts or {}, seed)
    twin.router = router
    twin.tokenizer_of_union = tokenizer
    twin.eval()
    return twin


def named(expert: Expert, labels: Sequence[str] | None) -> Expert:
    """The expert with declared label names, where its folder has none.

    Raises:
        CheckpointError: for another number of labels, or when the folder names others.
    """
    if labels is None or expert.head is None:
        return expert
    outputs = expert.head.out_proj.out_features
    if len(labels) != (0 if outputs == 1 else outputs):
        raise CheckpointError(f"{len(labels)} labels are declared for a head of {outputs} outputs; name each output.")
    if expert.labels is not None and expert.labels != list(labels):
        raise CheckpointError(
            f"labels {', '.join(labels)} are declared and the folder names {', '.join(expert.labels)}; "
            "drop one of them."
        )
    expert.head.label_names = list(labels)
    return replace(expert, labels=list(labels))


def stored_format(base: Checkpoint, experts: Sequence[Checkpoint]) -> str:
    """The number format that a twin of such folders needs: a half one where base and whole experts are stored in it."""
    kinds = {base.stored, *(expert.stored for expert in experts if expert.kind == "full")}
    return kinds.pop() if len(kinds) == 1 else "float32"


def combine(
    model: PreTrainedModel,
    experts: Mapping[str, Expert],
    method: Method,
    rank: RankPolicy,
    *,
    dense: str | None = None,
    seed: int = 0,
    **options: object,
) -> TwinMixin:
    """The twin of experts that were read, with their heads and without a router, see `merge_experts`."""
    twin, _ = merge_experts(model, experts, method, rank, dense=dense, seed=seed, **options)
    for task, expert in experts.items():
        if expert.head is not None:
            twin.heads[task] = expert.head
    return twin


def merge_experts(
    model: PreTrainedModel,
    experts: Mapping[str, Expert],
    method: Method,
    rank: RankPolicy,
    *,
    dense: str | None = None,
    seed: int = 0,
    **options: object,
) -> tuple[TwinMixin, Exclusive]:
    """The twin of experts that were read, without heads and router; adapters as exact products where that is possible.

    Args:
        model: the pretrained base; becomes the twin, in place.
        experts: task -> expert.
        method: of the shared expert, as of `merge`.
        rank: as of `merge`.
        dense: as of `merge`.
        seed: of the sketches, and of a method that has one.
        options: of the method.

    Returns:
        The twin, and its exclusive experts with their certificates.
    """
    function, policy = find(method), rank_policy(rank)
    known, given = options_of(function), options_for(function, options, list(experts))
    terms = {task: expert.terms for task, expert in experts.items()}
    if all(terms.values()) and method in ("average", "task_arithmetic") and policy.keys() - {"seed"} == {"rank"}:
        scale = 1 / len(terms) if method == "average" else given.get("scale", known["scale"].default)
        if isinstance(scale, int | float) and not given.keys() - {"scale"}:  # else it differs by expert or by tensor
            return merge_lora(model, terms, scale, policy["rank"], dense=dense)
    if "seed" in known:
        given = {"seed": seed, **given}
    states = {task: expert.state for task, expert in experts.items()}
    return merge(model, states, method, rank={"seed": seed, **policy}, dense=dense, **given)
