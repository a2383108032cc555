"""The twin folder: save a routed model, verify it, and load it routed, shared or as one expert.

Everything in the folder is readable by stock tools: the shared expert by `from_pretrained`, every exclusive expert as a
PEFT LoRA folder, and the routed model by `from_pretrained(..., trust_remote_code=True)`. A twin that no expert changes,
one dense model with several heads, is such a folder without exclusive experts.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from twinmerge.attaching import UnroutableError, statistics
from twinmerge.card import model_card
from twinmerge.checkpoints import inspect_checkpoint, read_json, with_report
from twinmerge.dense import densify, stock_view
from twinmerge.errors import CheckpointError
from twinmerge.modeling_twin import (
    FORMAT_VERSION,
    LOADERS,
    WITH_EXPERTS,
    Loader,
    TwinClassifier,
    TwinMixin,
    TwinModel,
    TwinOfItsClass,
    TwinTokenClassifier,
    assemble,
)
from twinmerge.peft_folder import write_expert
from twinmerge.twin_parts import Head
from twinmerge.whole_folder import restore_interrupted, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

__all__ = [
    "MANIFEST",
    "bundle",
    "copy_reader",
    "densify",
    "digest",
    "load",
    "model_card",
    "save",
    "verify",
    "whole_folder",
]

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKENIZER = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "chat_template",
)
_BUNDLED = (
    "mixture",
    "shrinking",
    "routed_layers",
    "routed_images",
    "timm_models",
    "states",
    "layouts",
    "attaching",
    "proving",
    "twin_parts",
    "twin_checks",
    "twin_mixin",
    "answering",
    "modeling_twin",
)

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | ProcessorMixin | str | Path | None"


def save(
    twin: object,
    folder: str | Path,
    *,
    tokenizer: Tokenizer = None,
    card: Mapping[str, object] | None = None,
    texts: Mapping[str, str] | None = None,
    labels: Mapping[str, list[str]] | None = None,
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a routed model as a twin folder.

    Args:
        twin: a model made by `attach` or `load`, fine-tuned or not.
        folder: where to; written whole or not at all.
        tokenizer: a tokenizer or processor, a folder with tokenizer files to copy, or a Hub name.
        card: facts for twin.json, such as the base, the residuals and source hashes.
        texts: further files, name -> content (recipe.yaml, result.json, README.md).
        labels: label names per task; those of `Head.label_names` where a task is not among them.
        overwrite: replace an existing folder.
        max_shard_size: of one file of the shared expert.

    Returns:
        The folder.

    Raises:
        ValueError: for a model without routing, the name of a task, head or text that is no plain file name, labels
            that fit no head, or a tokenizer that is none.
        FileExistsError: when the folder exists and `overwrite` is false.
    """
    if not isinstance(twin, TwinMixin):
        raise ValueError(f"a {type(twin).__name__} has no routing; make a twin with attach or load before saving.")
    check_task_names([*twin.tasks, *twin.heads])
    if bad := [name for name in texts or () if Path(name).name != name or name in ("", MANIFEST, "twin.json")]:
        raise ValueError(f"text {bad[0]!r} is not a plain file name; give one such as recipe.yaml.")
    target, given = Path(folder), labels or {}
    _check_labels(twin, given)
    with whole_folder(target, overwrite=overwrite) as out:
        stock = _save_shared(twin, out, max_shard_size)
        ranks = {
            task: write_expert(twin, i, out / "experts" / task)
            for i, task in enumerate(twin.tasks)
            if not twin.unrouted
        }
        (out / "heads").mkdir()
        for task, head in twin.heads.items():
            _save_module(head, out / "heads" / f"{task}.safetensors")
        if twin.router is not None:
            (out / "router").mkdir()  # a folder of its own: vLLM reads every safetensors file beside the shared expert
            _save_module(twin.router, out / "router" / "router.safetensors")
        _save_tokenizer(tokenizer, out, images=twin.main_input_name == "pixel_values")
        (out / "modeling_twin.py").write_text(bundle(), encoding="utf-8")
        description = {
            **(card or {}),
            "format_version": FORMAT_VERSION if twin.unrouted else WITH_EXPERTS,
            "tasks": list(twin.tasks),
            "base_class": stock,
            "router_reads": twin.router_reads,
            "router": None if twin.router is None else twin.router.spec(),
            "heads": {
                task: {**cast(Head, head).spec(), **({"labels": list(given[task])} if task in given else {})}
                for task, head in twin.heads.items()
            },
            "ranks": ranks,
            "left_out": twin.left_out,
            "batch_norms": bool(statistics(twin)),
        }
        (out / "twin.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name, text in {"README.md": model_card(description, target.name), **(texts or {})}.items():
            (out / name).write_text(text, encoding="utf-8")
        (out / MANIFEST).write_text(json.dumps(digest(out), indent=2) + "\n", encoding="utf-8")
    return target


def _save_shared(twin: TwinMixin, out: Path, max_shard_size: str) -> str:
    """The shared expert as its stock class writes it, and the entry of config.json that finds the routed class."""
    model = stock_view(twin)
    model.save_pretrained(out, max_shard_size=max_shard_size)
    loader: type[Loader] | None = next((c for c in LOADERS if type(model) in _classes(c.auto, model.config)), None)
    if loader is None and getattr(transformers, type(model).__name__, None) is type(model):
        loader = TwinOfItsClass
    if loader is None:
        names = ", ".join(c.auto.__name__ for c in LOADERS)
        raise ValueError(f"a {type(model).__name__} is loaded by none of {names}; make the twin of a class that is.")
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {(loader.auto or transformers.AutoModel).__name__: f"modeling_twin.{loader.__name__}"}
    if issubclass(loader, TwinModel):
        text = "Sequence" if model.main_input_name != "pixel_values" else "Image"
        for head in twin.heads.values():
            tokens = head.pooling == "tokens"
            entry = f"modeling_twin.{(TwinTokenClassifier if tokens else TwinClassifier).__name__}"
            config["auto_map"][f"AutoModelFor{'Token' if tokens else text}Classification"] = entry
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return type(model).__name__


def _classes(auto: type[_BaseAutoModelClass], config: object) -> tuple[type, ...]:
    mapping = cast("Mapping[type, type | list[type] | tuple[type, ...]]", auto._model_mapping)
    found = mapping.get(type(config), ())
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _save_module(module: nn.Module, file: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, file)


def check_task_names(names: Sequence[str]) -> None:
    """Refuse names of tasks that no folder of an expert can have.

    Raises:
        ValueError: for the first.
    """
    if bad := [name for name in names if not _NAME.fullmatch(name)]:
        raise ValueError(f"task name {bad[0]!r} is not a folder name; use up to 64 letters, digits, '_' and '-'.")


def _check_labels(twin: TwinMixin, labels: Mapping[str, list[str]]) -> None:
    """Refuse label names of no task, and another number of them than the head has outputs."""
    for task, names in labels.items():
        if task not in twin.tasks and task not in twin.heads:
            raise ValueError(f"labels are given for {task!r}, which is no task; the tasks are {', '.join(twin.tasks)}.")
        outputs = cast(Head, twin.heads[task]).out_proj.out_features if task in twin.heads else 0
        if outputs > 1 and len(names) != outputs:
            raise ValueError(
                f"{len(names)} labels are given for {task!r}, whose head has {outputs} outputs; name each."
            )


def _save_tokenizer(tokenizer: Tokenizer, out: Path, *, images: bool) -> None:
    """Write the tokenizer of a model of texts, or the processor of one of images or both."""
    if isinstance(tokenizer, str | Path) and Path(tokenizer).is_dir():
        copy_reader(Path(tokenizer), out)
        return
    if isinstance(tokenizer, str | Path):
        kind = transformers.AutoImageProcessor if images else transformers.AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(str(tokenizer), trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason, what = " ".join(str(error).split())[:100], "image processor" if images else "tokenizer"
            raise ValueError(f"{what} {str(tokenizer)!r} is no folder, and cannot be fetched ({reason}).") from error
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ValueError(f"tokenizer is {tokenizer!r}; give a tokenizer or processor, a folder of one, or a Hub name.")
    if tokenizer is not None:
        tokenizer.save_pretrained(out)


def copy_reader(where: Path, out: Path) -> None:
    """Copy the files of a folder's tokenizer, image processor or both; none where it has none."""
    for file in where.glob("*"):
        if file.name.startswith((*_TOKENIZER, "preprocessor_config", "processor_config")):
            shutil.copyfile(file, out / file.name)


def bundle() -> str:
    """The source of the routed model as the one file modeling_twin.py, free of imports from this package."""
    bodies = []
    for name in _BUNDLED:
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.parse(source).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            ours = isinstance(node, ast.ImportFrom) and (node.level > 0 or node.module == "__future__")
            listed = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            hints = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
            if docstring or ours or listed or hints:
                lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
        bodies.append(re.sub(r"\n{3,}", "\n\n\n", "\n".join(lines)).strip())
    start = '"""The routed model of this twin folder; it needs torch, safetensors and transformers only."""'
    return "\n\n\n".join((f"{start}\n\nfrom __future__ import annotations", *bodies)) + "\n"


def digest(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file, as a manifest has them; names that begin with a dot are left out."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        # What version control and download tools keep beside the files (.git, .cache) is none of the folder's.
        if file.is_file() and name.as_posix() != MANIFEST and not any(p.startswith(".") for p in name.parts):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name.as_posix()] = {"bytes": file.stat().st_size, "sha256": content}
    return found


def verify(folder: str | Path) -> None:
    """Compare every file with the manifest; names that begin with a dot, and the README, are left out.

    Raises:
        CheckpointError: naming the first file that is missing, added or changed.
    """
    root = Path(folder)
    restore_interrupted(root)
    if not (root / MANIFEST).exists():
        raise CheckpointError(f"{root} has no {MANIFEST}; it is not a twin folder, or it was not saved whole.")
    manifest = read_json(root / MANIFEST)
    try:
        found = digest(root)
    except OSError as error:
        raise CheckpointError(f"{root} cannot be verified ({error}); copy it again.") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{root / MANIFEST} is not a table of files; copy the twin folder again.")
    for name in sorted((manifest.keys() | found.keys()) - {"README.md"}):  # a model card is there to be edited
        if name not in found:
            raise CheckpointError(f"{root / name} is missing; copy the twin folder again.")
        if name not in manifest:
            raise CheckpointError(f"{root / name} was added since the folder was saved; remove it.")
        if found[name] != manifest[name]:
            raise CheckpointError(
                f"{root / name} was changed since it was saved (sha256 differs); copy the twin folder again."
            )


@overload
def load(
    folder: str | Path, mode: Literal["routed"] = "routed", *, check: bool = True, **options: object
) -> TwinMixin: ...
@overload
def load(folder: str | Path, mode: str, *, check: bool = True, **options: object) -> PreTrainedModel: ...
def load(folder: str | Path, mode: str = "routed", *, check: bool = True, **options: object) -> PreTrainedModel:
    """Load a twin folder with this package's own code; no code of the folder is run.

    Args:
        folder: a twin folder.
        mode: `routed`; `shared` for the stock model with the shared expert; `expert:<task>` for the stock model with
            one exclusive expert added to its weights.
        check: verify every file against the manifest first.
        options: of `from_pretrained`, such as `dtype`.

    Returns:
        A model in eval mode.

    Raises:
        CheckpointError: for a damaged folder, a missing or unexpected tensor, or an unknown mode or task.
    """
    root = Path(folder)
    restore_interrupted(root)
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; give a twin folder written by twinmerge.save.")
    if check:
        verify(root)
    try:
        card = read_json(root / "twin.json")
        tasks = card["tasks"]
        if any(not _NAME.fullmatch(name) for name in (*tasks, *card["heads"])):
            raise CheckpointError(f"{root / 'twin.json'} names a task that is no folder name; the folder is not ours.")
        task = mode.partition(":")[2]
        if mode not in ("routed", "shared") and (not mode.startswith("expert:") or task not in card["ranks"]):
            known = f", shared or expert:<task> with a task of {', '.join(tasks)}" if card["ranks"] else " or shared"
            raise CheckpointError(f"mode '{mode}' is unknown; choose routed{known}.")
        model = _stock_model(root, options)
        if mode == "shared":
            return model
        twin = assemble(model, root)
    except CheckpointError:
        raise
    except UnroutableError as error:  # of the options, not of the folder
        raise CheckpointError(str(error)) from error
    except Exception as error:  # whatever a damaged file provokes in the libraries that read it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{root} cannot be read as a twin folder ({reason}); copy it again.") from error
    return twin if mode == "routed" else densify(twin, {task: 1.0})


def _stock_model(root: Path, options: Mapping[str, object]) -> PreTrainedModel:
    inspect_checkpoint(root)  # headers first: they say best what is wrong
    named = read_json(root / "config.json").get("auto_map", {})
    named = {entry.rpartition(".")[2] for entry in named.values()}
    loader = next((c for c in (*LOADERS, TwinOfItsClass) if c.__name__ in named), None)
    if loader is None:
        raise CheckpointError(f"{root / 'config.json'} does not name a twin class; copy the twin folder again.")
    model, report = with_report(loader.stock(root), root, **options)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            raise CheckpointError(
                f"{root}: {kind.replace('_', ' ')}: {sorted(map(str, report[kind]))[0]}; copy the twin folder again."
            )
    model.eval()
    return model
