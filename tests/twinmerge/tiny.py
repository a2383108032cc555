"""Tiny models built from their configurations, experts made of random low-rank differences, and dense references."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

TASKS = ("spam", "topic", "mood")


def bert(layers: int = 2, **options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    return make(transformers.BertModel, config)


def bert_masked_lm() -> Any:
    return make(transformers.BertForMaskedLM, bert().config)


def bert_classifier(labels: int = 3) -> Any:
    config = bert().config
    config.num_labels = labels
    return make(transformers.BertForSequenceClassification, config)


def gpt2(layers: int = 2) -> Any:
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=48,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return make(transformers.GPT2LMHeadModel, config)


def llama(tied: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return make(transformers.LlamaForCausalLM, config)


def llama_tied() -> Any:
    return llama(tied=True)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return make(transformers.MixtralForCausalLM, config)


def vit() -> Any:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return make(transformers.ViTModel, config)


def vit_classifier() -> Any:
    config = vit().config
    config.num_labels = 3
    return make(transformers.ViTForImageClassification, config)


def llama_body() -> Any:
    return make(transformers.LlamaModel, llama().config)


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=40,
        dropout=0.0,
        scale_embedding=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return make(transformers.BartForConditionalGeneration, config)


class StemConfig(transformers.PreTrainedConfig):  # type: ignore[misc]
    model_type = "stem"
    is_encoder_decoder = False


class Stem(transformers.PreTrainedModel):  # type: ignore[misc]
    """Convolutions of every kind, a batch-first torch attention, an RMS norm of torch and a module of a user's own."""

    config_class = StemConfig
    main_input_name = "pixel_values"

    def __init__(self, config: StemConfig) -> None:
        super().__init__(config)
        self.wave = nn.Conv1d(1, 6, 3, padding=1)
        self.plain = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.deep = nn.Conv2d(8, 12, 3, stride=2, bias=False)
        self.norm = nn.RMSNorm(12, eps=1e-5)
        self.bare = nn.LayerNorm(12, bias=False)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.own = Own(12)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> tuple[Tensor]:
        waves = self.wave(pixel_values.flatten(1)[:, None, :32]).mean((1, 2))
        x = self.deep(torch.relu(self.grouped(torch.relu(self.plain(pixel_values))))).flatten(2).mT
        x = self.bare(self.norm(x) + waves[:, None, None])
        return (self.own(self.attention(x, x, x)[0], factor=2.0),)


class Own(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.mixing = nn.Parameter(torch.eye(width))
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return factor * self.inner(x @ self.mixing) * self.scale


def stem() -> Any:
    return make(Stem, StemConfig())


def make(kind: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():  # zeros and ones would hide a difference that goes unused
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def differences(
    model: nn.Module, rank: int | None = 2, seed: int = 1, experts: int = 3, skip: Sequence[str] = (), size: float = 0.2
) -> list[dict[str, Any]]:
    """Random experts: factors of the given rank where a weight is a matrix, dense differences elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    transposed = {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, Conv1D)}
    made: list[dict[str, Any]] = []
    for _ in range(experts):
        expert: dict[str, Any] = {}
        for name, p in model.named_parameters():
            if any(part in name for part in skip):
                continue
            if p.dim() < 2 or rank is None:
                expert[name] = size * torch.randn(p.shape, generator=generator)
                continue
            m, n = (p.shape[1], p.shape[0]) if name in transposed else (p.shape[0], p[0].numel())
            lead: tuple[int, ...] = ()
            if p.dim() == 3 and "experts" in name:
                lead, m, n = (p.shape[0],), p.shape[1], p.shape[2]
            up = size * torch.randn(*lead, m, rank, generator=generator)
            expert[name] = (up, torch.randn(*lead, rank, n, generator=generator) / n**0.5)
        made.append(expert)
    return made


def dense_state(model: nn.Module, experts: Sequence[Mapping[str, Any]], row: Sequence[float]) -> dict[str, Tensor]:
    """The weights of the shared expert plus a fixed mixture, written without any code of the package."""
    transposed = {f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, Conv1D)}
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    for weight, expert in zip(row, experts, strict=True):
        for name, difference in expert.items():
            delta = difference
            if isinstance(difference, tuple):
                product = difference[0].to(state[name].dtype) @ difference[1].to(state[name].dtype)
                delta = product.mT if name in transposed else product
            state[name] = state[name] + float(weight) * delta.to(state[name].dtype).reshape(state[name].shape)
    return state


def reference(model: Any, experts: Sequence[Mapping[str, Any]], weights: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """One dense merge per input, run on that input alone."""
    rows = []
    with torch.no_grad():
        for i, row in enumerate(weights):
            one = {k: v[i : i + 1] if isinstance(v, Tensor) else v for k, v in inputs.items()}
            rows.append(functional_call(model, dense_state(model, experts, row.tolist()), kwargs=one)[0])
    return torch.cat(rows)


def stock_copy(model: Any) -> Any:
    return copy.deepcopy(model)


def mixtures(rows: int, experts: int = 3, seed: int = 5) -> Tensor:
    return (3 * torch.randn(rows, experts, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def text(rows: int = 4, tokens: int = 7, padding: str = "right", seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for i in range(1, rows):
        cut = i % (tokens - 2)
        if cut:
            span = slice(tokens - cut, None) if padding == "right" else slice(0, cut)
            mask[i, span], ids[i, span] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def images(rows: int = 4) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(3))}


def router(width: int, tasks: int = 3, kind: str = "linear", **options: Any) -> Any:
    from twinmerge import Router

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Router(width, tasks, kind, **options)
