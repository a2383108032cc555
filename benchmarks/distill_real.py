"""The grid's question on real images and text, smaller: does the lead of DKD and DIST over KD go with training?

Images are Fashion-MNIST (Debian's dataset-fashion-mnist) at 16 pixels, a 32-wide CNN teaching 4-wide ones under A2
without mixing and dropped paths. Texts are the questions of TREC in six classes, a fine-tuned MiniLM teaching copies of
itself with one layer. Each has a teacher, then sweeps of the ``compare:`` recipe over updates, on images over training
rows too; three losses a method on images and two on text at two learning rates, chosen on validation under a seed of
their own, three other seeds on test rows, last checkpoint. Gaps, slopes and ``teacher_over_ce`` are those of
``distill_grid``. Finished runs are kept. An hour on two cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Figure, write_results
from benchmarks.gaps import Row, places, run, slopes, table

Recipe = dict[str, Any]
OUT = Path("runs/distill_real")
TRAINER = {"accelerator": "cpu", "devices": 1}
METHODS: Recipe = {"ce": {"hard": {}}, "kd": {}, "dkd": {}, "dist": {}}
HOT = {
    "ce": [{"hard": {"smoothing": 0.1}}],
    "kd": [{"hard": {}, "kd": {"weight": 3.0, "temperature": 4.0}}],
    "dkd": [{"hard": {}, "dkd": {"weight": 3.0, "beta": 2.0, "temperature": 4.0}}],
    "dist": [{"hard": {}, "dist": {"weight": 3.0, "temperature": 4.0}}],
}
ALONE = {
    "ce": [{"hard": {"weight": 3.0}}],
    "kd": [{"kd": {"weight": 1.0, "temperature": 4.0}}],
    "dkd": [{"dkd": {"weight": 1.0, "beta": 8.0, "temperature": 4.0}}],
    "dist": [{"dist": {"weight": 1.0, "temperature": 4.0}}],
}
FASHION = "/usr/share/datasets/fashion-mnist"


def images() -> tuple[Recipe, Recipe, str, list[tuple[str, str]]]:
    """The comparison on images, what its teacher's recipe differs by, the key of the rows, and updates x rows swept."""
    options = {"in_chans": 1, "mean": [0.286], "std": [0.353]}
    weights = OUT / "images-teacher/students/ce/network.safetensors"
    changes = {"batch_size": 128, "image_size": 16, "schedule_on": "update", "hard": "ce", "mixup": 0.0, "cutmix": 0.0}
    changes |= {"drop_path": 0.0, "repeats": 1, "auto_augment": "", "scale": [0.6, 1.0]}
    recipe: Recipe = {
        "recipe": "distill",
        "name": "fashion",
        "teacher": {"model": "small_cnn_32", "options": {**options, "checkpoint_path": str(weights)}},
        "student": {"model": "small_cnn_4", "options": options},
        "data": {"source": "fashion_mnist", "path": FASHION, "classes": 10, "grey": True, "rows": 2000},
        "channels_last": True,
        "regime": "A2",
        "changes": changes,
        "methods": METHODS,
        "compare": {"rates": [4.0, 8.0], "candidates": {name: HOT[name] + ALONE[name] for name in METHODS}},
    }
    recipe["data"]["test_rows"] = 5000
    alone = {"student": {**recipe["student"], "model": "small_cnn_32"}}
    alone |= {"data": recipe["data"] | {"rows": 50_000}, "changes": changes | {"learning_rate": 0.02}}
    return recipe, alone, "data.rows", [("300,1200", "2000,48000"), ("4800", "48000")]


def texts() -> tuple[Recipe, Recipe, str, list[tuple[str, str]]]:
    """The same on text."""
    task = {"name": "trec", "max_train": 4500, "max_validation": 500}
    changes = {"batch_size": 16, "optimizer": "adamw", "learning_rate": 3.0e-4, "weight_decay": 0.01}
    changes |= {"schedule_on": "update", "hard": "ce"}
    recipe: Recipe = {
        "recipe": "distill",
        "name": "trec",
        "teacher": {"model": str(OUT / "texts-teacher/students/ce/model")},
        "student": {"model": "shipped:minilm", "options": {"num_hidden_layers": 1}},
        "data": {"source": "task", "task": task, "length": 32},
        "regime": "A2",
        "changes": changes,
        "methods": METHODS,
        "compare": {"rates": [1.0, 3.0], "candidates": HOT},
    }
    alone = {"student": {"model": "shipped:minilm"}, "changes": changes | {"learning_rate": 2.0e-4}}
    alone |= {"data": recipe["data"] | {"task": {"name": "trec", "max_validation": 500}}}
    return recipe, alone, "data.task.max_train", [("120,360", "4500")]


STEPS = {"images": 3000, "texts": 900}  # of the teacher


def main(words: list[str]) -> None:
    """Run what is missing, then write the results; `images` or `texts` makes that half alone, and writes nothing."""
    OUT.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    tables: dict[str, list[Row]] = {}
    for kind, made in (("images", images), ("texts", texts)):
        if words and kind not in words:
            continue
        recipe, alone, rows_key, sweeps = made()
        trainer = {**TRAINER, "limit_val_batches": 0, "num_sanity_val_steps": 0, "max_steps": STEPS[kind]}
        without = {key: value for key, value in recipe.items() if key not in ("teacher", "compare")}
        teacher = without | alone | {"methods": {"ce": {"hard": {}}}, "name": f"{recipe['name']}-teacher"}
        run(_file(f"{kind}-teacher", teacher | {"trainer": trainer}), OUT / f"{kind}-teacher")
        file = _file(kind, recipe | {"log_gradients_every": 0, "trainer": {**TRAINER, "max_steps": 300}})
        rows: list[Row] = []
        for number, (updates, sizes) in enumerate(sweeps):
            out, swept = OUT / f"{kind}-{number}", {"trainer.max_steps": updates, rows_key: sizes}
            varied = [word for key, values in swept.items() for word in ("--sweep", f"{key}={values}")]
            run(file, out, *varied, "--jobs", "2", "--show", "gap", "--show", "accuracy")
            rows += places(out, rows_key)
        tables[kind] = table(rows)
        best = max(row["result"]["accuracy"]["ce"]["value"] for row in rows)
        figures |= {f"{kind}_teacher": rows[0]["result"]["teacher"]}
        figures |= {f"{kind}_teacher_over_ce": rows[0]["result"]["teacher"] - best}
        figures |= {f"{kind}_gap_slope_{name}": slope for name, slope in slopes(rows).items()}
        for row in rows:
            place = f"{kind}_{row['updates']}_{row['size']}"
            figures[f"gap_{place}"] = row["result"]["gap"]
            figures |= {f"{method}_{place}": found["value"] for method, found in row["result"]["accuracy"].items()}
    for name, value in figures.items():
        print(name, value)
    if not words:
        print(write_results("distill_real", figures, tables, seeds=3))


def _file(name: str, recipe: Recipe) -> str:
    path = OUT / f"{name}.yaml"
    text = yaml.safe_dump({**recipe, "seed": 0}, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return os.fspath(path)


if __name__ == "__main__":
    main(sys.argv[1:])
