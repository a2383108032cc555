"""The twin folder: save a routed model, verify it, and load it routed, shared or as one expert.

Everything in the folder is readable by stock tools: the shared expert by `from_pretrained`, every exclusive expert as a PEFT
LoRA folder, and the routed model by `from_pretrained(..., trust_remote_code=True)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twinmerge import modeling_twin, routed_layers
from twinmerge.checkpoints import read_header
from twinmerge.errors import CheckpointError
from twinmerge.modeling_twin import FORMAT_VERSION, Router, TwinForCausalLM, TwinMixin, TwinModel
from twinmerge.peft_folder import write_expert

MANIFEST = "MANIFEST.json"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@contextmanager
def whole_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a temporary sibling, then put it in place by renaming: a killed run leaves the old folder or a whole new one.

    Raises:
        FileExistsError: when the target exists and `overwrite` is false.
    """
    restore_interrupted(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder or overwrite it explicitly.")
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        yield working
        for file in working.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        previous = target.with_name(f".{target.name}.old")
        if target.exists():
            target.rename(previous)
        working.rename(target)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def restore_interrupted(target: Path) -> None:
    """Put the previous folder back when a save was killed between its two renames."""
    previous = target.with_name(f".{target.name}.old")
    if previous.exists() and not target.exists():
        previous.rename(target)


def save(
    twin: Any,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    card: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    labels: Mapping[str, list[str]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a routed model as a twin folder.

    Args:
        twin: a model made by `attach` or `load`, fine-tuned or not.
        folder: where to; written whole or not at all.
        tokenizer: a tokenizer, or a folder with tokenizer files to copy.
        card: facts for twin.json, such as the base, the ranks and residuals, and source hashes.
        texts: further files, name -> content (recipe.yaml, result.json, README.md).
        labels: label names per task.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        ValueError: for a model without routing or a task name with other characters than letters, digits, _ and -.
        FileExistsError: when the folder exists and `overwrite` is false.
    """
    if not isinstance(twin, TwinMixin):
        raise ValueError(f"a {type(twin).__name__} has no routing; make a twin with attach or load before saving.")
    if bad := [t for t in twin.tasks if not _NAME.fullmatch(t)]:
        raise ValueError(f"task name {bad[0]!r} is not a folder name; use up to 64 letters, digits, '_' and '-'.")
    target = Path(folder)
    with whole_folder(target, overwrite=overwrite) as out:
        stock = _save_shared(twin, out)
        ranks = {}
        for index, task in enumerate(twin.tasks):
            ranks[task] = write_expert(cast(nn.Module, twin), index, out / "experts" / task)
        for task, head in twin.heads.items():
            (out / "heads").mkdir(exist_ok=True)
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()},
                out / "heads" / f"{task}.safetensors",
            )
        if twin.router is not None:
            save_file(
                {k: v.cpu().contiguous() for k, v in twin.router.state_dict().items()}, out / "router.safetensors"
            )
        if isinstance(tokenizer, str | Path):
            for file in Path(tokenizer).glob("*"):
                if file.name.startswith(
                    ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece")
                ):
                    shutil.copyfile(file, out / file.name)
        elif tokenizer is not None:
            tokenizer.save_pretrained(out)
        for module in (modeling_twin, routed_layers):
            source = Path(cast(str, module.__file__))
            shutil.copyfile(source, out / source.name)
        router = twin.router
        description = {
            "format_version": FORMAT_VERSION,
            "tasks": list(twin.tasks),
            "base_class": stock,
            "features": "masked mean of the shared expert's last hidden state",
            "router": None if router is None else router.spec(),
            "heads": {
                task: {"pooling": h.pooling, "layer_norm": h.layer_norm, "labels": (labels or {}).get(task)}
                for task, h in twin.heads.items()
            },
            "ranks": ranks,
            **(card or {}),
        }
        (out / "twin.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name, text in (texts or {}).items():
            (out / name).write_text(text, encoding="utf-8")
        if not (out / "README.md").exists():
            (out / "README.md").write_text(model_card(description, target.name), encoding="utf-8")
        (out / MANIFEST).write_text(json.dumps(_digest(out), indent=2) + "\n", encoding="utf-8")
    return target


def _save_shared(twin: Any, out: Path) -> str:
    """The shared expert alone, as the stock class writes it; adds the entry that finds the routed class."""
    stock = next(
        c for c in type(twin).__mro__ if c.__module__.startswith("transformers.") and hasattr(c, "from_pretrained")
    )
    state = {
        name: value
        for name, value in twin.state_dict().items()
        if name.split(".")[0] not in ("router", "heads") and ".experts_" not in name
    }
    # The stock class writes it, so that tied weights, shards and generation settings are what transformers expects.
    with torch.device("meta"):
        model = stock(twin.config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    causal = any("CausalLM" in name or "LMHead" in name for name in config["architectures"])
    auto, routed = ("AutoModelForCausalLM", TwinForCausalLM) if causal else ("AutoModel", TwinModel)
    config["auto_map"] = {auto: f"modeling_twin.{routed.__name__}"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return str(stock.__name__)


def model_card(description: Mapping[str, Any], name: str, recipe: str = "") -> str:
    """README.md of a twin folder: what it holds, how to load it, and the recipe that made it."""
    tasks = ", ".join(description["tasks"])
    base = description.get("base", "the base")
    made = f"\n## Recipe\n\n```yaml\n{recipe.rstrip()}\n```\n" if recipe else ""
    return f"""---
library_name: transformers
tags: [merge, twin-merging, lora]
---

# {name}

A Twin-Merging model (Lu et al. 2024, arXiv 2406.15479): a shared expert merged from fine-tunes of {base}, one low-rank
exclusive expert per task ({tasks}), and a router that gives every input its own mixture.

| call | gives |
|---|---|
| `AutoModel….from_pretrained(folder)` | the shared expert, a plain {description["base_class"]}, no code of this folder run |
| `PeftModel.from_pretrained(shared, folder + "/experts/<task>")` | the shared expert with one exclusive expert |
| `AutoModel….from_pretrained(folder, trust_remote_code=True)` | the routed model; runs modeling_twin.py of this folder |
| `twinmerge.load(folder, mode="routed")` | the same, manifest verified, no code of this folder run |

For a fixed mixture with PEFT use `add_weighted_adapter(..., combination_type="cat")`; `"linear"` averages the factors A and B
apart, which is another and wrong model.
{made}"""


def _digest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    return {
        f.relative_to(folder).as_posix(): {
            "bytes": f.stat().st_size,
            "sha256": hashlib.sha256(f.read_bytes()).hexdigest(),
        }
        for f in files
    }


def verify(folder: str | Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing, added, changed or a link out of the folder.
    """
    root = Path(folder)
    restore_interrupted(root)
    if not (root / MANIFEST).exists():
        raise CheckpointError(f"{root} has no {MANIFEST}; it is not a twin folder, or it was not saved whole.")
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        found = _digest(root)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{root} cannot be verified ({error}); copy it again.") from error
    for name in sorted(manifest.keys() | (found.keys() & {"model.safetensors", "modeling_twin.py"})):
        if name not in found:
            raise CheckpointError(f"{root / name} is missing; copy the twin folder again.")
        if found[name] != manifest.get(name):
            raise CheckpointError(
                f"{root / name} was changed since it was saved (sha256 differs); copy the twin folder again."
            )
    experts = {name.split("/")[1] for name in found if name.startswith("experts/")}
    if experts - {n.split("/")[1] for n in manifest if n.startswith("experts/")}:
        raise CheckpointError(
            f"{root / 'experts'} holds folders that the manifest does not know; copy the twin folder again."
        )


def load(folder: str | Path, mode: str = "routed", *, check: bool = True) -> Any:
    """Load a twin folder with this package's own code; no code of the folder is run.

    Args:
        folder: a twin folder.
        mode: `routed`; `shared` for the stock model with the shared expert; `expert:<task>` for the stock model with
            one exclusive expert added to its weights.
        check: verify every file against the manifest first.

    Returns:
        A model in eval mode.

    Raises:
        CheckpointError: for a damaged folder, a missing or unexpected tensor, or an unknown mode or task.
    """
    root = Path(folder)
    if not root.is_dir():
        restore_interrupted(root)
    if not root.is_dir():
        raise CheckpointError(f"{root} is not a folder; give a twin folder written by twinmerge.save.")
    if check:
        verify(root)
    description = json.loads((root / "twin.json").read_text(encoding="utf-8"))
    if any(not _NAME.fullmatch(t) for t in description["tasks"]):
        raise CheckpointError(f"{root / 'twin.json'} names a task that is no folder name; the folder is not ours.")
    task = mode.partition(":")[2]
    if mode not in ("routed", "shared") and (not mode.startswith("expert:") or task not in description["tasks"]):
        raise CheckpointError(
            f"mode '{mode}' is unknown; choose routed, shared or expert:<task> with a task of {', '.join(description['tasks'])}."
        )
    model = _stock_model(root)
    if mode == "shared":
        return model
    try:
        twin = modeling_twin.assemble(model, root)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{root} lacks or adds tensors ({error}); copy the twin folder again.") from error
    return twin if mode == "routed" else densify(twin, {task: 1.0})


def _stock_model(root: Path) -> Any:
    import transformers

    auto_map = json.loads((root / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    auto = getattr(transformers, next(iter(auto_map), "AutoModel"))
    for file in root.glob("model*.safetensors"):
        read_header(file)
    model, report = auto.from_pretrained(root, trust_remote_code=False, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            raise CheckpointError(
                f"{root}: {kind.replace('_', ' ')}: {sorted(map(str, report[kind]))[0]}; copy the twin folder again."
            )
    return model.eval()


def densify(twin: Any, weights: Mapping[str, float]) -> Any:
    """A stock model whose weights are the shared expert plus a fixed mixture of the exclusive experts.

    Args:
        twin: a routed model; left as it is.
        weights: task -> coefficient; absent tasks count 0.

    Raises:
        ValueError: for a task that the twin does not have.
    """
    if unknown := sorted(set(weights) - set(twin.tasks)):
        raise ValueError(f"no expert named {unknown[0]!r}; this twin has {', '.join(twin.tasks)}.")
    stock = next(
        c for c in type(twin).__mro__ if c.__module__.startswith("transformers.") and hasattr(c, "from_pretrained")
    )
    row = torch.tensor([float(weights.get(t, 0.0)) for t in twin.tasks])
    state = {
        n: v
        for n, v in twin.state_dict().items()
        if n.split(".")[0] not in ("router", "heads") and ".experts_" not in n
    }
    with torch.no_grad():
        for name, delta in mixed_differences(twin, row).items():
            state[name] = (state[name].float() + delta).to(state[name].dtype)
    model = stock(twin.config)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.eval()


def mixed_differences(twin: Any, row: Tensor) -> dict[str, Tensor]:
    """Parameter name -> sum over experts of row[t] times its difference, in the parameter's own layout, float32."""
    out: dict[str, Tensor] = {}
    for name, module in twin.named_modules():
        if isinstance(module, routed_layers.FactoredLayer):
            weight = cast(Tensor, module.weight)
            merged = (module.experts_up.float() * row[module.experts_owner]) @ module.experts_down.float()
            out[f"{name}.weight"] = (merged.t() if isinstance(module, routed_layers.RoutedConv1D) else merged).reshape(
                weight.shape
            )
            if module.experts_bias is not None:
                out[f"{name}.bias"] = row @ module.experts_bias.float()
        elif isinstance(module, routed_layers.RoutedNorm):
            for leaf, stack in (("weight", module.experts_weight), ("bias", module.experts_bias)):
                if stack is not None:
                    out[f"{name}.{leaf}"] = row @ stack.float()
        elif isinstance(module, routed_layers.RoutedAny):
            for leaf, stack in module.experts_delta.items():
                out[f"{name}.{leaf}"] = torch.tensordot(row, stack.float(), dims=1)
    return out


def load_router(folder: str | Path) -> Router:
    """The router of a twin folder alone."""
    root = Path(folder)
    router = Router(**json.loads((root / "twin.json").read_text(encoding="utf-8"))["router"])
    router.load_state_dict(load_file(root / "router.safetensors"))
    return router.eval()
