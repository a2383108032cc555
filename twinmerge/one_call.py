"""From folders to a twin in one call: read every expert, merge, give the twin its heads, and its router where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from twinmerge.twin_mixin import TwinMixin
from twinmerge.vocabulary import fit_vocabulary

__all__ = ["ROUTERS", "combine", "merge_folders", "named", "router_from_texts", "stored_format"]

ROUTERS = ("mlp", "linear", "knn")


def merge_folders(
    base: str | Path,
    folders: Mapping[str, str | Path],
    *,
    method: Method = "task_arithmetic",
    rank: RankPolicy | None = None,
    router: str | Router | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    vocabulary: str = "strict",
    labels: Mapping[str, Sequence[str]] | None = None,
    dense: str | None = None,
    seed: Seed = 0,
    **options: object,
) -> TwinMixin:
    """Merge folders that plain transformers or PEFT wrote into a routed twin.

    Args:
        base: the experts' common base, a folder or a Hub name.
        folders: task -> an expert's folder or Hub name; at least two.
        method: of the shared expert: a name that `twinmerge.methods.methods` lists, or a function, see `merge`.
        rank: the rank of every exclusive expert, such as 8, or exactly one rank policy of `exclusive_experts`, such as
            {"energy": 0.9}; density 0.1 when not given. With a fixed rank, adapters are merged as exact products of
            their factors by `average` and `task_arithmetic`.
        router: a trained `Router`; or `knn` (no training), `linear` or `mlp`, made from `texts`; None leaves the twin
            without, so that a forward takes `router_weights`.
        texts: task -> unlabelled texts, at least two each, for a router that is made here.
        vocabulary: `strict`, `pad` or `union` (see `twinmerge.vocabulary`).
        labels: task -> label names in the order of the head's outputs, of tasks whose folder does not name them.
        dense: which vectors the exclusive experts keep, see `merge`.
        seed: of the sketches, of the router's training, and of a method that draws at random, such as `dare`.
        options: of the method, such as `scale`.

    Returns:
        The twin in eval mode: `twin.classify(**inputs, head="spam")`; `twin.tokenizer_of_union` where one was made. It
        is in the number format of the files where base and whole experts share a half one, and in float32 otherwise.

    Raises:
        CheckpointError: for a folder that cannot be read exactly.
        ValueError: for an argument of another kind, an unknown option, a router without texts, or texts or labels of a
            task that has no folder.
    """
    from transformers import AutoModel

    check_arguments(merge_folders, locals())
    check_task_names(list(folders))
    options_for(find(method), options, list(folders))
    rank = rank_policy({"density": 0.1} if rank is None else rank)
    _check_router(router, texts, folders)
    if odd := next((task for task in labels or {} if task not in folders), None):
        raise ValueError(f"labels are given for '{odd}', which is no task; the tasks are {', '.join(folders)}.")
    places = {task: local_folder(where) for task, where in folders.items()}
    where = local_folder(base)
    model = AutoModel.from_pretrained(where, dtype=torch.float32, trust_remote_code=False).eval()
    headers = inspect_checkpoint(where)
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
    if isinstance(router, str):
        from transformers import AutoTokenizer

        words = tokenizer or AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        router = router_from_texts(twin, router, words, {task: list((texts or {})[task]) for task in folders}, seed)
    twin.router = router
    twin.tokenizer_of_union = tokenizer
    twin.eval()
    return twin


def _check_router(
    router: str | Router | None, texts: Mapping[str, Sequence[str]] | None, folders: Mapping[str, str | Path]
) -> None:
    """Refuse a router that cannot be made, and texts that no router is made from."""
    if not isinstance(router, str):
        if texts is not None:
            raise ValueError(
                f"texts are what a router is made from, and router is {'None' if router is None else 'made already'}; "
                f"choose {', '.join(ROUTERS)}, or leave texts out."
            )
        return
    if router not in ROUTERS:
        raise ValueError(f"router '{router}' is unknown; choose {', '.join(ROUTERS)}, a Router, or None.")
    if not texts or set(folders) - set(texts) or min(map(len, texts.values())) < 2:
        raise ValueError(f"router '{router}' needs texts of every task, at least two each; give texts={{task: [...]}}.")
    if odd := next((task for task in texts if task not in folders), None):
        raise ValueError(f"texts are given for '{odd}', which is no task; the tasks are {', '.join(folders)}.")


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


def router_from_texts(
    twin: TwinMixin, kind: str, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, list[str]], seed: int
) -> Router:
    """A router from unlabelled texts: every fifth text of a task is held out to fit the temperature."""
    found: dict[str, Tensor] = {}
    for task in twin.tasks:
        rows = []
        for text in texts[task]:
            inputs = tokenizer(text, return_tensors="pt", truncation=True)
            inputs = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
            with torch.no_grad():
                rows.append(twin.features(**inputs)[0])
        found[task] = torch.stack(rows)
    return router_from_features(kind, found, seed)


def router_from_features(kind: str, features: Mapping[str, Tensor], seed: int) -> Router:
    """A router from the shared expert's features: every fifth row of a task is held out to fit the temperature.

    Args:
        kind: `knn`, `linear` or `mlp`.
        features: task -> rows (items, width), at least two.
        seed: of the training.
    """
    import lightning

    from twinmerge.router import FeatureDataModule, RouterModule, fit_temperature, knn_router

    parts: dict[bool, list[tuple[Tensor, int]]] = {False: [], True: []}
    for index, rows in enumerate(features.values()):
        for number, row in enumerate(rows):
            parts[number % 5 == 1].append((row, index))
    x, y, held_x, held_y = (
        torch.stack(list(column)) if isinstance(column[0], Tensor) else torch.tensor(column)
        for held in (False, True)
        for column in zip(*parts[held], strict=True)
    )
    if kind == "knn":
        router = knn_router(x, y, len(features))
    else:
        torch.manual_seed(seed)
        module = RouterModule(x.shape[1], len(features), kind=cast(Literal["mlp", "linear"], kind))
        module.router.standardise(x)
        trainer = lightning.Trainer(
            max_epochs=30,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=FeatureDataModule((x, y), (held_x, held_y), seed=seed))
        router = module.router.eval()
    router.temperature = fit_temperature(router, held_x, held_y)
    return router
