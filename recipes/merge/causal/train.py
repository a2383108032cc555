"""Train one causal expert on pairs, chats or plain text, and score it by its task's metric."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from recipes.data.language_rows import load_language
from recipes.data.models import resolve_model
from recipes.merge.adapters import adapted
from recipes.running.seals import stamp
from recipes.running.trainer import build_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from recipes.data.task_source import TaskSource
    from recipes.merge.causal.data import LanguageData
    from recipes.merge.schema import Training
    from recipes.running.folder import RunFolder
    from recipes.running.trainer import TrainerConfig

HALF = {"bf16-true": "bfloat16", "16-true": "float16"}  # precisions in which the weights themselves are kept


def language_model(where: Path | str, precision: Any = None, four_bits_on: Any = None) -> Any:
    """A base in float32, or in the format in which a Trainer keeps the weights.

    Args:
        where: Folder or Hub name.
        precision: Of the Trainer.
        four_bits_on: The device that holds the base in 4 bits (NF4, computed in bfloat16); None for a plain base.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if four_bits_on is not None:
        quantised = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        options: dict[str, Any] = {"quantization_config": quantised, "device_map": {"": four_bits_on}}
        return AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, trust_remote_code=False, **options)
    kind = getattr(torch, HALF.get(str(precision), "float32"))
    return AutoModelForCausalLM.from_pretrained(where, dtype=kind, trust_remote_code=False)


def train_language(
    base: str,
    source: TaskSource,
    training: Training,
    trainer_config: TrainerConfig,
    seed: int,
    target: Path,
    folder: RunFolder,
) -> dict[str, Any]:
    """Train one expert and save it whole as a Hugging Face or PEFT folder.

    Args:
        base: Model to start from.
        source: The task, with its ``language``.
        training: How to train.
        trainer_config: Arguments of the Trainer.
        seed: Of everything random.
        target: Folder of the expert.
        folder: Run folder, for progress, metrics and checkpoints.

    Returns:
        The content of expert.json: the metric, its ``validation`` and ``test`` score, and scores per token among it.
    """
    import lightning

    from recipes.merge.causal.data import LanguageData, check_packing
    from twinmerge.language_module import LanguageModule
    from twinmerge.whole_folder import whole_folder

    lightning.seed_everything(seed, workers=True, verbose=False)
    task, where = load_language(source, seed), resolve_model(base)
    sizes = {"batch_size": training.batch_size, "max_length": training.max_length}
    data = LanguageData(task, where, **sizes, seed=seed, packing=training.packing)
    data.setup()
    trainer = build_trainer(trainer_config, folder, source.name)
    four_bits_on = trainer.strategy.root_device if training.qlora else None
    model = language_model(where, trainer_config.precision, four_bits_on)
    if training.packing:
        check_packing(model)
    rates = {key: getattr(training, key) for key in ("learning_rate", "weight_decay", "warmup")}
    module = LanguageModule(adapted(model, training, "CAUSAL_LM"), **rates, frozen=tuple(training.frozen))
    cut = f", {data.cut} of all rows cut to {training.max_length} tokens" if data.cut else ""
    told = (f"{len(data.rows['train'])} training rows{cut}", *task.notes)
    folder.say(f"expert {source.name}: {'; '.join(told)}")
    trainer.fit(module, datamodule=data, ckpt_path=folder.checkpoint_of(source.name))
    found = {
        "validation": trainer.validate(module, datamodule=data, verbose=False)[0],
        "test": trainer.test(module, datamodule=data, verbose=False)[0],
    }
    scores = {
        split: _score(module.model, data, split, found[split], 2 * training.batch_size, folder) for split in found
    }
    card = {
        "task": source.name,
        "labels": [],
        "kind": "causal",
        "metric": task.metric,
        "base": base,
        "seed": seed,
        **scores,
        "per_token": {split: {key.partition("/")[2]: float(v) for key, v in found[split].items()} for split in found},
    }
    state = module.whole_state()
    if trainer.is_global_zero:
        made: Any = module.model
        with whole_folder(target, overwrite=True) as out:
            made.save_pretrained(out, **({} if state is None else {"state_dict": state}))
            data.tokenizer.save_pretrained(out)
            (out / "expert.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            stamp(out)
        shutil.rmtree(folder.checkpoints / source.name, ignore_errors=True)  # only an interrupted training needs them
    trainer.strategy.barrier()  # no process reads the expert before it is there
    folder.say(f"expert {source.name}: test {task.metric} {card['test']:.3f}")
    return card


def _score(model: Any, data: LanguageData, split: str, found: Any, batch_size: int, folder: RunFolder) -> float:
    """The task's own metric. A perplexity after prompts is the one that was counted token by token already."""
    from recipes.merge.causal.data import padding_of
    from recipes.merge.causal.scores import Speaker, batches, score

    if data.task.metric == "perplexity" and data.task.form == "pairs":
        return float(found[f"{split}/perplexity"])
    rows = data.rows[split]
    speaker = Speaker(model.eval(), padding_of(data.tokenizer))
    with folder.phase(f"{split} {data.task.metric} {data.task.name}", batches(len(rows), batch_size)) as progress:
        return score(speaker, data.task, rows, data.tokenizer, batch_size=batch_size, tick=progress.advance)
