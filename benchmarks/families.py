"""Which encoder families can be routed: each is exact to 1e-4, or refused with the reason before anything is trained.

Every encoder family of transformers that can be built from a tiny configuration is built, three fine-tunes of it are
made (all parameters that a forward trains, and batch-norm statistics, are moved at random), merged at full rank, and
one routed batch in which every input has a mixture of its own is compared with one dense model per input. At full rank
and with weights that sum to 1 that model is the weighted mean of the experts, so that the reference shares no code with
the package. A family is `silent` when it is neither exact nor refused by `merge` or `check_routing` in one sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.models.auto import modeling_auto as auto

from twinmerge import check_routing, merge
from twinmerge.layouts import probe_inputs

EXPERTS, ROWS, LIMIT = 3, 4, 10_000_000
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embed_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads", "decoder_attention_layers"), 2),
    **dict.fromkeys(("intermediate_size", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner"), 48),
    **dict.fromkeys(("vocab_size", "n_words"), 120),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0),
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 8),
    **dict.fromkeys(("d_kv", "d_head", "head_dim"), 16),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("bos_token_id", "cls_token_id", "decoder_start_token_id"), 1),
}
OWN: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": 4},
    "big_bird": {"block_size": 4, "attention_type": "original_full"},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "position_buckets": 8,
    },
    "funnel": {
        "num_hidden_layers": None,
        "num_layers": None,
        "block_sizes": [1, 1],
        "d_inner": 48,
        "d_model": 32,
        "n_head": 2,
        "d_head": 16,
    },
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "swinv2": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "donut-swin": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "maskformer-swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3], "patch_size": 4},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2},
    "poolformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "pvt": {
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "image_size": 64,
    },
    "pvt_v2": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    "segformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    "cvt": {"embed_dim": [8, 16, 16], "depth": [1, 1, 1], "num_heads": [1, 2, 2]},
    "van": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "hiera": {
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "image_size": [64, 64],
        "patch_size": None,
    },
    "levit": {
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "mobilebert": {
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "hidden_size": 32,
        "num_feedforward_networks": 1,
        "num_attention_heads": 2,
    },
    "squeezebert": {
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "post_attention_groups": 1,
        "intermediate_groups": 2,
        "output_groups": 2,
        "embedding_size": 32,
    },
    "convbert": {"embedding_size": 32, "head_ratio": 1},
    "canine": {"downsampling_rate": 2, "local_transformer_stride": 4, "num_hash_buckets": 64},
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 32},
    "xlm": {"emb_dim": 32},
    "mobilevit": {
        "hidden_sizes": [8, 12, 16],
        "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 32],
        "image_size": 64,
        "patch_size": 2,
        "num_attention_heads": 2,
    },
    "mobilevitv2": {"image_size": 64, "patch_size": 2, "width_multiplier": 0.125},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320, "image_size": 64},
    "efficientformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "image_size": 64},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "image_size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "lilt": {"hidden_size": 24, "channel_shrink_ratio": 2},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "mluke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "perceiver": {
        "num_latents": 4,
        "d_latents": 16,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
    },
    "wav2vec2": {
        "conv_dim": [16, 16],
        "conv_kernel": [10, 4],
        "conv_stride": [5, 4],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    },
    "xlnet": {"d_model": 32, "n_head": 2, "n_layer": 2, "d_inner": 48},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6, "has_spatial_attention_bias": True, "input_size": 32},
    "layoutlm": {"max_2d_position_embeddings": 32},
    "yoso": {"use_expectation": True},
    "nystromformer": {"segment_means_seq_len": 16, "num_landmarks": 4, "conv_kernel_size": 3},
}
OWN |= dict.fromkeys(
    ("hubert", "wavlm", "sew", "sew-d", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-conformer"),
    OWN["wav2vec2"],
)


def families() -> list[str]:
    """Model types of encoders: what is trained as a masked model, a text encoder or a classifier but is no decoder."""
    names = set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES) | set(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    names |= set(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES) - set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names |= set(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES) | set(auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES)
    return sorted(names & set(auto.MODEL_MAPPING_NAMES))


def build(family: str) -> Any:
    """A tiny model of a family with weights drawn from one seed.

    Raises:
        ValueError: when transformers cannot build one from a tiny configuration here.
    """
    try:
        kind = auto.MODEL_MAPPING[transformers.CONFIG_MAPPING[family]]
        kind = kind[0] if isinstance(kind, tuple) else kind
        if family in auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
            kind = getattr(transformers, auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES[family])
        default = kind.config_class()
        own = OWN.get(family, {})
        other = {kind.config_class.attribute_map.get(k) for k in own} | {
            k for k, v in kind.config_class.attribute_map.items() if v in own
        }
        chosen = {k: v for k, v in SMALL.items() if hasattr(default, k) and k not in other} | own
        chosen = {k: v for k, v in chosen.items() if v is not None}  # None leaves the default
        config = kind.config_class(**chosen)
        with torch.device("meta"):
            size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
        if size > LIMIT:
            raise ValueError(f"{size} parameters")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(config)
            for parameter in model.parameters():  # zeros and ones would hide a difference that goes unused
                parameter.data += 0.05 * torch.randn(parameter.shape)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(0.5)
        inputs = probe_inputs(model, ROWS)
        if inputs is None:
            raise ValueError("no inputs could be made")
        with torch.no_grad():
            model.eval()(**inputs)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(f"{family} is not built from a tiny configuration ({reason})") from error
    return model


def fine_tuned(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Experts: all that a backward pass reaches, and running statistics, moved at random."""
    double = copy.deepcopy(model).requires_grad_(True)
    total = sum(t.float().square().sum() for t in floating(double(**inputs)))
    total.backward()  # type: ignore[union-attr]
    trained = {name for name, p in double.named_parameters() if p.grad is not None}
    experts = {}
    for seed in range(EXPERTS):
        generator = torch.Generator().manual_seed(seed + 1)
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        state |= {n: b.clone() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
        for name, value in state.items():
            if name in trained:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
            elif "running_" in name:
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
        experts[f"t{seed}"] = state
    return experts


def floating(output: Any) -> list[Tensor]:
    """Floating tensors of a model's output."""
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]


def error_of(twin: Any, model: Any, experts: Mapping[str, Any], inputs: Mapping[str, Tensor], weights: Tensor) -> float:
    """Largest relative difference between the routed batch and one dense model per input."""
    worst = 0.0
    with torch.no_grad():
        routed = floating(twin(**inputs, router_weights=weights))
        for i, row in enumerate(weights.double()):
            dense = copy.deepcopy(model)
            state = {
                n: sum(w * e[n].double() for w, e in zip(row, experts.values(), strict=True))
                for n in next(iter(experts.values()))
            }
            dense.load_state_dict({n: v.to(torch.float32) for n, v in state.items()}, strict=False)
            alone = floating(dense(**{k: v[i : i + 1] for k, v in inputs.items()}))
            for whole, one in zip(routed, alone, strict=True):
                if whole.shape[0] == len(weights) and one.shape[0] == 1:
                    finite = one.isfinite()
                    scale = one[finite].abs().max().clamp_min(1e-6)
                    worst = max(worst, float((whole[i : i + 1] - one)[finite].abs().max() / scale))
    return worst


def outcome(
    family: str, model: Any, further: Callable[[Any, Mapping[str, Tensor]], str] = lambda *_: ""
) -> dict[str, Any]:
    """exact, refused or silent, with the error or the reason.

    Args:
        family: its name.
        model: of the family.
        further: what else is amiss with a twin on these inputs, in words.
    """
    inputs = probe_inputs(model, ROWS) or {}
    if "input_ids" in inputs:  # longer than the batch that attach tries, and another order
        for key, value in inputs.items():
            inputs[key] = torch.cat([value, value.flip(0)], 1) if key != "decoder_input_ids" else value
        if "attention_mask" in inputs:  # texts of different lengths, as a batch of texts has them
            for row in range(ROWS):
                inputs["attention_mask"][row, 16 - 3 * row :] = 0
    experts = fine_tuned(model, inputs)
    weights = torch.randn(ROWS, EXPERTS, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    row: dict[str, Any] = {
        "family": family,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    try:
        twin, _ = merge(copy.deepcopy(model), experts, "task_arithmetic", rank={"density": 1.0}, scale=0.3)
        twin.eval()
        check_routing(twin, tolerance=1e-3, **inputs)
    except ValueError as error:
        return row | {"outcome": "refused", "error": None, "reason": " ".join(str(error).split())}
    except Exception as error:
        return row | {
            "outcome": "silent",
            "error": None,
            "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        }
    error_ = error_of(twin, model, experts, inputs, weights)
    amiss = further(twin, inputs)
    return row | {"outcome": "silent" if error_ > 1e-4 or amiss else "exact", "error": error_, "reason": amiss}


def sweep() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The outcome of every family, and those that transformers cannot build small here."""
    rows, left = [], []
    for family in families():
        try:
            model = build(family)
        except ValueError as error:
            left.append({"family": family, "reason": str(error)})
            continue
        rows.append(outcome(family, model))
        print(rows[-1], flush=True)
    return rows, left
