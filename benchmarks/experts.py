"""Bring your own experts: which folders and which architectures are merged exactly, and how large the twins are.

Foreign folders: of every kind of folder that plain transformers or PEFT writes (`tests/twinmerge/foreign.py`) one is
checked by the merge recipe's ``--check`` beside a second expert of the same base. What passes is merged at full rank,
saved, loaded and asked under its own weight alone; what does not must have been refused for a stated reason.
Families: see `benchmarks/families.py`. Sizes: twins of two whole fine-tunes with the default density, in every number
format, and twins of two adapters. The routed row of the eight text tasks is read from ``merge_text8.json``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import families, vision
from benchmarks.common import RESULTS, Figure, write_results
from recipes.errors import RecipeError
from recipes.merge.checks import check
from recipes.merge.schema import Recipe
from tests.twinmerge import foreign
from twinmerge import load, merge_folders, save
from twinmerge.folders import read_folder

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
SIZED = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert", "gpt2", "llama", "mpnet")


def error_of(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference of logits at real tokens, relative to 1 + the largest logit."""
    if wanted.dim() == 3:
        mask = foreign.batch()["attention_mask"].bool()
        got, wanted = got[mask], wanted[mask]
    return float((got - wanted).abs().max()) / (1 + float(wanted.abs().max()))


def folder_row(kind: str, root: Path) -> dict[str, Any]:
    """What becomes of one kind of folder: merged, refused, or silent."""
    made = foreign.KINDS[kind]
    base = foreign.base(made.base, root / f"base-{made.base}")
    folder, beside = root / "folder", root / f"beside-{made.base}"
    made.make(base, folder)
    if not beside.is_dir():
        foreign.full(foreign.CLASSIFIER, seed=9)(base, beside)
    row: dict[str, Any] = {"kind": kind, "outcome": "silent", "head_error": None, "twin_error": None, "reason": ""}
    try:
        list(check(Recipe(base=str(base), experts={"given": str(folder), "beside": str(beside)})))
    except RecipeError as error:
        said = [p for p in error.problems if p.startswith(("experts.given: ", "experts: "))]
        return row | {"outcome": "refused" if said else "silent", "reason": anywhere(" ".join(error.problems), root)}
    inputs = foreign.batch()
    with torch.no_grad():
        wanted = foreign.original(folder, base)(**inputs)[0]
        body = transformers.AutoModel.from_pretrained(base, dtype=torch.float32, trust_remote_code=False).eval()
        expert = read_folder(folder, base, body)
        body.load_state_dict(dict(expert.state), strict=False)
        hidden = body(**inputs)[0]
        row["head_error"] = error_of(
            hidden if expert.head is None else expert.head(hidden, inputs["attention_mask"]), wanted
        )
        twin = merge_folders(base, {"given": folder, "beside": beside}, rank={"density": 1.0}).float()
        twin = load(save(twin, root / "twin", overwrite=True), dtype=torch.float32)
        own = {"router_weights": torch.eye(2)[[0, 0, 0]]}
        got = twin(**inputs, **own)[0] if expert.head is None else twin.classify(**inputs, head="given", **own).logits
    row["twin_error"] = error_of(got[..., : wanted.shape[-1]], wanted)
    exact = row["head_error"] <= 1e-5 and row["twin_error"] <= 1e-4
    return row | {"outcome": "merged" if exact else "silent", "reason": anywhere(expert.note, root).split(", ", 1)[-1]}


def anywhere(text: str, root: Path) -> str:
    """What was said of a folder, without the place on this machine."""
    folder = root / "folder"
    return text.replace(f"{folder}/", "").replace(str(folder), "the folder").replace(f"{root}/", "")


def size_row(kind: str, stored: str, root: Path) -> dict[str, Any]:
    """Bytes of the weights of a twin and of the experts that it came from: a base that is mostly embeddings."""
    sizes = {**foreign.OTHER_SIZES.get(kind, foreign.SIZES), "vocab_size": 4000}
    base = root / "base"
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(kind, **sizes), trust_remote_code=False
    )
    model.to(getattr(torch, stored if stored != "LoRA" else "float32")).save_pretrained(base)
    foreign.tokenizer().save_pretrained(base)
    for seed, task in enumerate("ab"):
        if stored == "LoRA":
            foreign.adapter(foreign.lora(target_modules="all-linear"), seed=seed)(base, root / task)
        else:
            foreign.full(foreign.CLASSIFIER, stored, seed=seed)(base, root / task)
    rank = {"rank": 4} if stored == "LoRA" else None
    twin = save(merge_folders(base, {task: root / task for task in "ab"}, rank=rank), root / "twin")
    parts = {part: weights(twin / part) for part in ("experts", "heads", "router")}
    experts = sum(weights(root / task) for task in "ab") + (weights(base) if stored == "LoRA" else 0)
    return {
        "base": kind,
        "experts": stored,
        "experts_bytes": experts,
        "twin_bytes": weights(twin),
        "shared_bytes": weights(twin) - sum(parts.values()),
        **{f"{part.replace('experts', 'exclusive')}_bytes": size for part, size in parts.items()},
        "ratio": weights(twin) / experts,
    }


def weights(folder: Path) -> int:
    """Bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def normalised_by_seed(regime: str) -> list[float]:
    """The routed row's mean share of the experts' scores, seed by seed."""
    rows = json.loads((RESULTS / "merge_text8.json").read_text())["tables"][f"tasks_{regime}"]
    scores = {(r["seed"], r["row"]): {k: v for k, v in r.items() if k not in ("seed", "row")} for r in rows}
    seeds = sorted({seed for seed, _ in scores})
    pairs = [(scores[seed, "routed"], scores[seed, "experts"]) for seed in seeds]
    return [sum(routed[t] / experts[t] for t in experts) / len(experts) for routed, experts in pairs]


def page(tables: dict[str, Any]) -> str:
    """docs/families.md: which folders and architectures are merged, as the results file has it."""
    folders = [f"| {r['kind']} | {r['outcome']} | {told(r)} |" for r in tables["folders"]]
    rows = [f"| {r['family']} | {r['class']} | {r['outcome']} | {r['error'] or 0:.0e} |" for r in tables["families"]]
    not_built = ", ".join(row["family"] for row in tables["not_built"]) or "none"
    return "\n".join(
        [
            "# Which models merge",
            "",
            "This page is written by `python -m benchmarks.experts`, which tries all of it.",
            "",
            "## Folders that transformers and PEFT write",
            "",
            "Merged: the expert's own head gives the folder's logits to 1e-5, and the saved and loaded twin does so to",
            "1e-4 under this expert alone. Refused: `--check` says why.",
            "",
            "| folder | outcome | how it is read, or why not |",
            "|---|---|---|",
            *folders,
            "",
            "## Encoder families",
            "",
            "Exact: one batch of texts of different lengths, or of images, in which every input has its own mixture of",
            "three fine-tunes, equals one dense model for each input to 1e-4. The error is relative to the outputs.",
            "",
            "| family | class | outcome | error |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Not built small here, and so not tried: {not_built}.",
            "",
            *vision_page(tables),
        ]
    )


def vision_page(tables: dict[str, Any]) -> list[str]:
    """The section of image models."""
    rows = [f"| {r['family']} | {r['class']} | {r['outcome']} | {r['error'] or 0:.0e} |" for r in tables["vision"]]
    left = ", ".join(row["family"] for row in tables["vision_not_built"]) or "none"
    return [
        "## Image models",
        "",
        "The same of image models of transformers and of timm (inside transformers' wrapper), batch norms' statistics",
        "included.",
        "",
        "| family | class | outcome | error |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Not built small here, and so not tried: {left}.",
        "",
    ]


def told(row: dict[str, Any]) -> str:
    """How a folder is read, or the reason of its refusal."""
    return str(row["reason"]).removeprefix("experts.given: ").replace("|", "/")


def of_vision() -> tuple[dict[str, Figure], dict[str, Any]]:
    """Figures and tables of the image models."""
    rows, left = vision.rows_of()
    count = {kind: sum(r["outcome"] == kind for r in rows) for kind in ("exact", "refused", "silent")}
    figures: dict[str, Figure] = {
        "vision_families": len(rows),
        "vision_exact_share": count["exact"] / len(rows),
        "vision_refused": count["refused"],
        "vision_silent": count["silent"],
        "vision_max_exact_error": max(r["error"] for r in rows if r["outcome"] == "exact"),
    }
    return figures, {"vision": rows, "vision_not_built": left}


def only_vision() -> None:
    """Try the image models anew, and leave the rest of the results as it is."""
    before = json.loads((RESULTS / "experts.json").read_text())
    figures, tables = of_vision()
    figures, tables = before["figures"] | figures, before["tables"] | tables
    write_results("experts", figures, tables, seeds=1)
    PAGE.write_text(page(tables), encoding="utf-8")
    print(figures)


def main() -> None:
    """Try every folder, family and size, and write the results; the word `vision` asks for image models alone."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "vision" in sys.argv[1:]:
        only_vision()
        return
    folders, sizes = [], []
    with tempfile.TemporaryDirectory() as place:
        for number, kind in enumerate(foreign.KINDS):
            root = Path(place)
            folders.append(folder_row(kind, root))
            (root / "folder").rename(root / f"done-{number}")
            print(folders[-1], flush=True)
        for kind, stored in [(k, "float32") for k in SIZED] + [("bert", s) for s in ("bfloat16", "float16", "LoRA")]:
            with tempfile.TemporaryDirectory(dir=place) as own:
                sizes.append(size_row(kind, stored, Path(own)))
            print(sizes[-1], flush=True)
    rows, left = families.sweep()
    merged = [row for row in folders if row["outcome"] == "merged"]
    count = {kind: sum(r["outcome"] == kind for r in rows) for kind in ("exact", "refused", "silent")}
    figures: dict[str, Figure] = {
        "foreign_folders": sum(row["outcome"] != "silent" for row in folders),
        "foreign_silent": sum(row["outcome"] == "silent" for row in folders),
        "merged": len(merged),
        "max_head_error": max(row["head_error"] for row in merged),
        "max_twin_error": max(row["twin_error"] for row in merged),
        "families": len(rows),
        "exact_share": count["exact"] / len(rows),
        "refused": count["refused"],
        "silent": count["silent"],
        "max_exact_error": max(r["error"] for r in rows if r["outcome"] == "exact"),
        "twin_over_experts_bytes": max(row["ratio"] for row in sizes if row["experts"] != "LoRA"),
        "twin_over_adapters_bytes": max(row["ratio"] for row in sizes if row["experts"] == "LoRA"),
        "routed_normalised_trained_min_seed": min(normalised_by_seed("trained")),
        "routed_normalised_fixed_min_seed": min(normalised_by_seed("fixed")),
    }
    tables = {"folders": folders, "families": rows, "not_built": left, "sizes": sizes}
    vision_figures, vision_tables = of_vision()
    figures |= vision_figures
    tables |= vision_tables
    write_results("experts", figures, tables, seeds=1)
    PAGE.write_text(page(tables), encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
