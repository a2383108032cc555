"""Folders that other people have: fine-tunes saved by plain transformers and plain PEFT, nothing of this project in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(60))]
LABELS = {0: "ham", 1: "spam", 2: "bulk"}
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
OTHER_SIZES = {
    "distilbert": {
        "vocab_size": len(WORDS), "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.2,
    },
    "gpt2": {
        "vocab_size": len(WORDS), "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0,
        "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.2,
    },
    "albert": {**SIZES, "embedding_size": 16},
    "electra": {**SIZES, "embedding_size": 16},
    "llama": {**SIZES, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "modernbert": {**SIZES, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """One kind of folder.

    Attributes:
        base: Model type of its base.
        make: Writes the folder, given the base's.
        refused: A word of the reason where no exact expert can be read; empty where one must.
    """

    base: str
    make: Callable[[Path, Path], Any]
    refused: str = ""


def tokenizer(words: list[str] | None = None) -> Any:
    """A real tokenizer of whole words, with [CLS] and [SEP] around a text."""
    vocabulary = {word: i for i, word in enumerate(words or WORDS)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary, no secret
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=40, **named)


def base(kind: str, folder: Path) -> Path:
    """A pretrained model of a type, with its tokenizer; made once."""
    if not folder.is_dir():
        torch.manual_seed(len(kind))
        config = transformers.AutoConfig.for_model(kind, **OTHER_SIZES.get(kind, SIZES))
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder


def moved(model: Any, seed: int, size: float = 0.05) -> Any:
    """The model after a training of which only the outcome counts: everything trainable has moved."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn(parameter.shape, generator=draw)
    return model


def full(auto: str, dtype: str = "float32", seed: int = 1, labels: Any = None, **saving: Any) -> Callable[..., None]:
    """A full fine-tune through an Auto class."""

    def make(where: Path, target: Path) -> None:
        named = {} if auto == "AutoModel" else {"id2label": labels or LABELS}
        model = getattr(transformers, auto).from_pretrained(where, **named)
        moved(model, seed).to(getattr(torch, dtype)).save_pretrained(target, **saving)
        tokenizer().save_pretrained(target)

    return make


def pickled(where: Path, target: Path) -> None:
    """What older transformers wrote: pytorch_model.bin."""
    full("AutoModelForSequenceClassification")(where, target)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(target)
    torch.save(model.state_dict(), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()


def sharded_pickle(where: Path, target: Path) -> None:
    """The same in two files beside an index."""
    pickled(where, target)
    state = torch.load(target / "pytorch_model.bin", weights_only=True)
    (target / "pytorch_model.bin").unlink()
    names = sorted(state)
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, mine in parts.items():
        torch.save({n: state[n] for n in mine}, target / file)
    table = {"metadata": {"total_size": 1}, "weight_map": {n: f for f, mine in parts.items() for n in mine}}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(table))


def adapter(
    config: Callable[[], Any], auto: str = "AutoModelForSequenceClassification", seed: int = 2
) -> Callable[..., None]:
    """A PEFT fine-tune; PEFT itself adds the new head to what is saved for a task type that has one."""

    def make(where: Path, target: Path) -> None:
        torch.manual_seed(seed)
        named = {} if auto == "AutoModel" else {"id2label": LABELS}
        model = getattr(transformers, auto).from_pretrained(where, **named)
        made = get_peft_model(model, config())
        moved(made, seed).save_pretrained(target)
        tokenizer().save_pretrained(target)

    return make


def lora(**options: Any) -> Callable[[], Any]:
    """A LoRA configuration as users write them."""
    given = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], **options}
    return lambda: LoraConfig(**given)


def added_tokens(where: Path, target: Path) -> None:
    """A fine-tune with two tokens of its own."""
    words = tokenizer()
    words.add_tokens(["<url>", "<user>"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(where, id2label=LABELS)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    moved(model, 7).save_pretrained(target)
    words.save_pretrained(target)


def padded(where: Path, target: Path) -> None:
    """A fine-tune whose vocabulary was padded to a multiple of 16 and 8 more rows, its tokenizer unchanged."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(where, id2label=LABELS)
    model.resize_token_embeddings(80, mean_resizing=False)
    moved(model, 8).save_pretrained(target)
    tokenizer().save_pretrained(target)


def narrower(where: Path, target: Path) -> None:
    """A model of another base."""
    sizes = {**SIZES, "hidden_size": 16, "id2label": LABELS}
    transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).save_pretrained(target)


def other_epsilon(where: Path, target: Path) -> None:
    """Weights of the right shapes that are used otherwise."""
    full("AutoModelForSequenceClassification")(where, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-2}))


def torn(where: Path, target: Path) -> None:
    """A copy that was cut short."""
    full("AutoModelForSequenceClassification")(where, target)
    file = target / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def poisoned(where: Path, target: Path) -> None:
    """A pickle that is more than weights."""
    pickled(where, target)
    torch.save({"x": shutil.rmtree}, target / "pytorch_model.bin")


CLASSIFIER, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
DENSE = {"target_modules": "all-linear"}

KINDS: dict[str, Foreign] = {
    **{f"{kind} classifier": Foreign(kind, full(CLASSIFIER)) for kind in (
        "bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "camembert", "modernbert", "gpt2", "llama",
        "roformer", "mpnet",
    )},
    "bert classifier, bf16": Foreign("bert", full(CLASSIFIER, "bfloat16")),
    "bert classifier, fp16": Foreign("bert", full(CLASSIFIER, "float16")),
    "bert classifier, sharded": Foreign("bert", full(CLASSIFIER, max_shard_size="20KB")),
    "bert classifier, pytorch_model.bin": Foreign("bert", pickled),
    "bert classifier, sharded pytorch_model.bin": Foreign("bert", sharded_pickle),
    "bert regression": Foreign("bert", full(CLASSIFIER, labels={0: "score"})),
    "bert token classification": Foreign("bert", full(TOKENS)),
    "roberta token classification": Foreign("roberta", full(TOKENS)),
    "bert AutoModel": Foreign("bert", full("AutoModel")),
    "bert AutoModel, bf16": Foreign("bert", full("AutoModel", "bfloat16")),
    "LoRA classifier": Foreign("bert", adapter(lora())),
    "LoRA classifier on roberta": Foreign("roberta", adapter(lora())),
    "LoRA classifier on distilbert": Foreign("distilbert", adapter(lora(target_modules=["q_lin", "v_lin"]))),
    "LoRA classifier on gpt2": Foreign("gpt2", adapter(lora(target_modules=["c_attn"], fan_in_fan_out=True))),
    "LoRA with modules_to_save": Foreign("bert", adapter(lora(modules_to_save=["classifier", "pooler"]))),
    "LoRA token classification": Foreign("bert", adapter(lora(task_type="TOKEN_CLS"), TOKENS)),
    "LoRA feature extractor": Foreign("bert", adapter(lora(task_type="FEATURE_EXTRACTION"), "AutoModel")),
    "LoRA without a task type": Foreign("bert", adapter(lora(task_type=None), "AutoModel")),
    "rsLoRA": Foreign("bert", adapter(lora(use_rslora=True, r=6))),
    "LoRA with rank_pattern": Foreign("bert", adapter(lora(rank_pattern={"layer.0.attention.self.query": 2}))),
    "LoRA with alpha_pattern": Foreign("bert", adapter(lora(alpha_pattern={"layer.1.attention.self.value": 3}))),
    "LoRA on some layers": Foreign("bert", adapter(lora(layers_to_transform=[1], layers_pattern="layer"))),
    "LoRA on all linear layers": Foreign("bert", adapter(lora(**DENSE))),
    "LoRA on embeddings": Foreign("bert", adapter(lora(target_modules=["query", "word_embeddings"]))),
    "LoRA with bias lora_only": Foreign("bert", adapter(lora(bias="lora_only"))),
    "LoRA with bias all": Foreign("bert", adapter(lora(bias="all"))),
    "LoRA with lora_bias": Foreign("bert", adapter(lora(lora_bias=True))),
    "DoRA": Foreign("bert", adapter(lora(use_dora=True))),
    "PiSSA": Foreign("bert", adapter(lora(init_lora_weights="pissa"))),
    "OLoRA": Foreign("bert", adapter(lora(init_lora_weights="olora"))),
    "VeRA": Foreign("bert", adapter(lambda: VeraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"]))),
    "IA3": Foreign(
        "bert", adapter(lambda: IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[]))
    ),
    "LoHa": Foreign("bert", adapter(lambda: LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))),
    "LoKr": Foreign("bert", adapter(lambda: LoKrConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))),
    "OFT": Foreign("bert", adapter(lambda: OFTConfig(
        task_type="SEQ_CLS", r=0, oft_block_size=8, target_modules=["query"]))),
    "prompt tuning": Foreign("bert", adapter(
        lambda: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)), "PROMPT_TUNING"),
    "randomised PiSSA": Foreign("bert", adapter(lora(init_lora_weights="pissa_niter_4")), "pissa_niter_4"),
    "fewer dimensions": Foreign("bert", narrower, "hidden_size"),
    "another epsilon": Foreign("bert", other_epsilon, "layer_norm_eps"),
    "cut short": Foreign("bert", torn, "truncated"),
    "pickled code": Foreign("bert", poisoned, "weights only"),
    "added tokens": Foreign("bert", added_tokens, "vocabulary"),
    "padded vocabulary": Foreign("bert", padded, "vocabulary"),
}  # fmt: skip


def original(folder: Path, where: Path) -> Any:
    """The model as its maker loads it, by transformers and PEFT alone."""
    if not (folder / "adapter_config.json").is_file():
        config = json.loads((folder / "config.json").read_text())
        return getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32).eval()
    task = json.loads((folder / "adapter_config.json").read_text())["task_type"]
    auto = {"SEQ_CLS": CLASSIFIER, "TOKEN_CLS": TOKENS}.get(task, "AutoModel")
    named = {} if auto == "AutoModel" else {"num_labels": len(LABELS)}
    model = getattr(transformers, auto).from_pretrained(where, **named)
    return PeftModel.from_pretrained(model, str(folder)).eval()


def batch() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded on the right."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(4, len(WORDS), (3, 9), generator=draw)
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 6, 4)):
        ids[row, length:], mask[row, length:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def paint(folder: Path, colour: int, count: int = 20) -> Path:
    """Images of one colour's shades, in a folder that is made."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 60, (20, 20, 3))
        noise[..., colour] += 150
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return folder
