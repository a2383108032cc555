"""Small checkpoints on disk: Llama-shaped, tied or not, sharded or not, in any number format."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama(tied=False, hidden=32, layers=3, vocab=101):
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def write_family(folder, experts=3, *, tied=False, dtype=torch.float32, shard="5GB", size=0.02, **shape):
    """A base and fine-tunes of it; returns the base's folder and theirs by name."""
    base = llama(tied, **shape)
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    base.to(dtype).save_pretrained(folder / "base", max_shard_size=shard)
    made = {}
    for index in range(experts):
        generator = torch.Generator().manual_seed(index + 1)
        tuned = llama(tied, **shape)
        with torch.no_grad():
            for name, p in tuned.named_parameters():
                p.copy_(start[name] + size * torch.randn(p.shape, generator=generator))
        tuned.to(dtype).save_pretrained(folder / f"expert{index}", max_shard_size=shard)
        made[f"e{index}"] = folder / f"expert{index}"
    return folder / "base", made


def read(folder):
    """All tensors of a folder."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found
