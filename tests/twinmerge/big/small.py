"""Small Llama-shaped checkpoints on disk, tied or not, in one file or several, in any number format."""

import json

import torch
from safetensors.torch import load_file, save_file


def shapes(tied=False, hidden=32, layers=3, vocab=101):
    """Names and shapes of a Llama's tensors as transformers saves them."""
    found = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        start = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden // 2, hidden),
            ("self_attn.v_proj", hidden // 2, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", 2 * hidden, hidden),
            ("mlp.up_proj", 2 * hidden, hidden),
            ("mlp.down_proj", hidden, 2 * hidden),
        ):
            found[f"{start}.{name}.weight"] = (rows, columns)
        found[f"{start}.input_layernorm.weight"] = found[f"{start}.post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    return found if tied else {**found, "lm_head.weight": (vocab, hidden)}


def config(tied=False, hidden=32, layers=3, vocab=101):
    """Its config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
    }


def write(folder, tensors, settings, files=1):
    """A checkpoint of one file, or of several with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    names = list(tensors)
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    owner = {name: f"model-{index * files // len(names) + 1:05}-of-{files:05}.safetensors" for index, name in
             enumerate(names)}  # fmt: skip
    for file in set(owner.values()):
        save_file({n: tensors[n] for n in names if owner[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owner}))


def write_family(folder, experts=3, *, dtype=torch.float32, files=1, size=0.02, **shape):
    """A base and fine-tunes of it; returns the base's folder and theirs by name."""
    found, settings = shapes(**shape), config(**shape)
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.1 * torch.randn(one, generator=generator) for name, one in found.items()}
    write(folder / "base", {n: v.to(dtype) for n, v in base.items()}, settings, files)
    made = {}
    for index in range(experts):
        generator.manual_seed(index + 1)
        tuned = {n: (v + size * torch.randn(v.shape, generator=generator)).to(dtype) for n, v in base.items()}
        made[f"e{index}"] = folder / f"expert{index}"
        write(made[f"e{index}"], tuned, settings, files)
    return folder / "base", made


def read(folder):
    """All tensors of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found
