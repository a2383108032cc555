"""Twin-Merging of checkpoints in files: the shared expert, and every exclusive expert as LoRA factors over it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from gapbridge.arguments import Count, PositiveShare, Seed, check_arguments
from twinmerge.big.devices import check_device
from twinmerge.big.experts import LoraExpert
from twinmerge.big.factors import Certificate, Ranks, check_ranks, differences_of
from twinmerge.big.growing import Vocabulary, forget
from twinmerge.big.merge import (
    Job,
    bound_method,
    copy_beside,
    fingerprint,
    fingerprint_of,
    folders_of,
    job_of,
    planned,
    refuse_above_limit,
    write_merged,
)
from twinmerge.big.plan import Plan
from twinmerge.big.reading import Files, Place
from twinmerge.big.statistics import check_statistics, read_statistics
from twinmerge.big.writing import Journal, resumable_folder
from twinmerge.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def twin_files(
    base: str | Path,
    experts: Mapping[str, str | Path],
    folder: str | Path,
    *,
    method: str = "task_arithmetic",
    options: Mapping[str, object] | None = None,
    statistics: Mapping[str, str | Path] | None = None,
    rank: Count | None = None,
    density: PositiveShare | None = None,
    energy: PositiveShare | None = None,
    budget: Count | None = None,
    router: Literal["knn", "linear", "mlp"] | None = None,
    texts: Mapping[str, Sequence[str] | str | Path] | None = None,
    tolerance: float = 0.01,
    seed: Seed = 0,
    vocabulary: Vocabulary = "strict",
    device: str = "cpu",
    shard: str = "5GB",
    memory: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge causal language models in files into a twin folder, without ever holding a model.

    The folder is what `twinmerge.load` and `gapbridge serve` read. With texts of every expert it has a router, made
    from the shared expert's features, for which one module of it is in memory at a time; without, a forward takes
    `router_weights`. Every exclusive expert is a plain adapter of PEFT; vectors such as norms are left to the shared
    expert.

    Args:
        base: The experts' common base: a folder, or a Hub name.
        experts: By name, whole checkpoints in safetensors or plain LoRA adapters; at least two.
        folder: The twin to make; a merge that was killed goes on when it is called again.
        method: Of the shared expert, as for `merge_files`.
        options: Of the method, as for `merge_files`.
        statistics: Of the method, as for `merge_files`.
        rank: Singular directions of every exclusive matrix; exactly one of the four.
        density: Share of min(rows, columns).
        energy: Share of every difference's squared norm.
        budget: Bytes of the factors of each expert.
        router: `knn` (no training), `linear` or `mlp` (the paper's), made from `texts`.
        texts: By expert, unlabelled texts, at least two each, or a file with one a line.
        tolerance: Accepted excess of a residual over the best one of its rank.
        seed: Of the sketches.
        vocabulary: As for `merge_files`.
        device: Where the tensor at hand is worked on.
        shard: Largest file of the shared expert.
        memory: As for `merge_files`.
        overwrite: Replace an existing folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: For models that are no causal language models, and as `merge_files`.
        ValueError: When not exactly one of rank, density, energy and budget is given, and for a router without texts.
    """
    check_arguments(twin_files, locals())
    check_device(device)
    ranks = Ranks(rank, density, energy, budget)
    _check_twin(ranks, experts)
    job = job_of(base, experts, vocabulary=vocabulary)
    architecture, words = checked_twin(job, ranks, router, texts)
    run = bound_method(job, method, options)
    check_statistics(method, statistics, list(experts))
    refuse_above_limit(planned_twin(job, method, memory, ranks))
    made_by = [method, options, fingerprint_of(statistics), asdict(ranks), tolerance, seed, vocabulary, shard]
    task = [fingerprint(base, experts), *made_by, router, words]
    target, read = Path(folder).expanduser(), folders_of(base, experts)
    with resumable_folder(target, task, read=read, overwrite=overwrite) as (out, journal), Files() as files:
        known = partial(run, **read_statistics(method, statistics, list(experts), files))
        writer = write_merged(job, out, files, journal, known, shard=shard, device=device)
        copy_beside(job, out, "stored")
        told, modules = _write_experts(job, out, writer.places, journal, ranks, tolerance, seed, device)
        forget(out)
        made = None if router is None else _save_router(out, router, words, seed, device)
        _describe(out, architecture, told, modules, str(base), made)
    return target


def _check_twin(ranks: Ranks, experts: Mapping[str, object]) -> None:
    if sum(value is not None for value in asdict(ranks).values()) != 1:
        raise ValueError(f"the rank policy is {asdict(ranks)}; give exactly one of rank, density, energy and budget.")
    if odd := [name for name in experts if not _NAME.fullmatch(name)]:
        raise ValueError(f"expert name {odd[0]!r} is not a folder name; use up to 64 letters, digits, '_' and '-'.")


def checked_twin(
    job: Job, ranks: Ranks, router: str | None, texts: Mapping[str, Sequence[str] | str | Path] | None
) -> tuple[str, dict[str, list[str]]]:
    """Refuse what no twin is made of, before anything is merged.

    Returns:
        The base's class, and the texts of every expert; none without a router.

    Raises:
        CheckpointError: For a base that is no causal language model, or has no tokenizer that a router needs.
        ValueError: For a rank that no matrix has, and a router without texts.
    """
    check_ranks(job, ranks)
    architecture, words = _architecture(job), _texts(router, texts, job.experts)
    if router is not None:
        from twinmerge.big.features import tokenizer_of

        tokenizer_of(job.base.folder)
    return architecture, words


def _architecture(job: Job) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as LANGUAGE

    found = str(next(iter(job.base.config.get("architectures") or ()), ""))
    if found not in LANGUAGE.values():
        raise CheckpointError(
            f"{job.base.folder} is a {found or 'model without architecture'}, and twins in files are made of causal "
            "language models; use twinmerge.merge_folders."
        )
    if len(job.experts) < 2:
        raise CheckpointError(f"a twin is made of at least two experts, and {list(job.experts)} is given; add one.")
    return found


def _write_experts(
    job: Job,
    out: Path,
    shared: Mapping[str, Place],
    journal: Journal,
    ranks: Ranks,
    tolerance: float,
    seed: int,
    device: str,
) -> tuple[dict[str, Certificate], dict[str, dict[str, int]]]:
    """Write every exclusive expert; returns their certificates and ranks by module."""
    told: dict[str, Certificate] = {}
    modules: dict[str, dict[str, int]] = {}
    with Files() as written:
        for name, expert in job.experts.items():
            where = out / "experts" / name
            where.mkdir(parents=True, exist_ok=True)
            source = differences_of(job, name, shared, written, device)
            if isinstance(expert, LoraExpert):
                expert.over(job.places)
            told[name] = source.write(
                where, journal, ranks, tolerance=tolerance, seed=seed, dtype="float32", base="../.."
            )
            modules[name] = source.modules({n: r for n, r in told[name]["ranks"].items() if r})
    return told, modules


def _texts(
    router: str | None, texts: Mapping[str, Sequence[str] | str | Path] | None, experts: Mapping[str, object]
) -> dict[str, list[str]]:
    """The texts of every expert; none without a router."""
    if (router is None) != (texts is None):
        raise ValueError(f"router is {router!r} and texts are {'missing' if texts is None else 'given'}; give both.")
    if texts is None:
        return {}
    from twinmerge.big.features import texts_of

    return texts_of(texts, list(experts))


def _save_router(
    out: Path, kind: Literal["knn", "linear", "mlp"], texts: Mapping[str, list[str]], seed: int, device: str
) -> dict[str, object]:
    """Make a router beside the shared expert, and return what the card says of it."""
    from safetensors.torch import save_file

    from twinmerge.big.features import router_of_folder

    router = router_of_folder(out, kind, texts, seed, device)
    (out / "router").mkdir(exist_ok=True)
    state = {name: value.contiguous() for name, value in router.state_dict().items()}
    save_file(state, out / "router" / "router.safetensors", metadata={"format": "pt"})
    return router.spec()


def planned_twin(job: Job, method: str, memory: str | None, ranks: Ranks) -> Plan:
    """The plan of a twin; ranks that depend on the differences are taken to be a tenth of the shorter side."""
    tenth = max((min(shape) for _, shape in job.out.values() if len(shape) == 2), default=0) // 10
    asked = ranks.energy is not None or ranks.budget is not None
    return planned(job, method, memory, rank=ranks.rank or max(1, tenth), spectra=asked)


def _describe(
    out: Path,
    architecture: str,
    told: Mapping[str, Certificate],
    modules: Mapping[str, Mapping[str, int]],
    base: str,
    router: Mapping[str, object] | None,
) -> None:
    """Card, code and manifest of a twin folder."""
    from twinmerge.artefact import MANIFEST, bundle, digest, model_card
    from twinmerge.modeling_twin import WITH_EXPERTS

    (out / "heads").mkdir(exist_ok=True)
    (out / "modeling_twin.py").write_text(bundle(), encoding="utf-8")
    card = {
        "base": base,
        "residuals": {task: row["residuals"] for task, row in told.items()},
        "format_version": WITH_EXPERTS,
        "tasks": list(told),
        "base_class": architecture,
        "router_reads": "last",
        "router": router,
        "heads": {},
        "ranks": modules,
        "left_out": {task: row["left_out"] for task, row in told.items()},
    }
    (out / "twin.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_twin.TwinForCausalLM"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(card, out.name), encoding="utf-8")
    (out / MANIFEST).write_text(json.dumps(digest(out), indent=2) + "\n", encoding="utf-8")
