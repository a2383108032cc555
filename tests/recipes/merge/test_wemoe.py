"""WEMoE: the weights of feed-forward blocks are mixed anew for every input, as in a dense model of that mixture."""

import copy

import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5EncoderModel,
)

from recipes.errors import RunError
from recipes.merge.baselines import Baselines
from recipes.merge.schema import Recipe
from recipes.merge.wemoe import INITIAL, Gate, blocks_of, check_blocks, ensembled
from twinmerge.functional import task_arithmetic

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def experts():
    torch.manual_seed(0)
    base = BertModel(BertConfig(vocab_size=50, **SIZES)).eval()
    states = {
        task: {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in base.named_parameters()}
        for task in ("a", "b", "c")
    }
    return base, states


def test_at_first_every_input_is_answered_by_task_arithmetic(experts):
    base, states = experts
    made, gates, stored = ensembled(base, states)
    for gate in gates:
        nn.init.zeros_(gate.net[2].weight)
    dense = copy.deepcopy(base)
    merged = task_arithmetic(dict(base.named_parameters()), list(states.values()), scale=INITIAL)
    dense.load_state_dict({**base.state_dict(), **{n: p.detach() for n, p in merged.items()}})
    ids = torch.randint(0, 50, (3, 7))
    torch.testing.assert_close(made(ids)[0], dense(ids)[0], atol=1e-5, rtol=1e-4)
    assert stored > 3 * sum(states["a"][f"encoder.layer.{i}.intermediate.dense.weight"].nbytes for i in (0, 1))
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {
        name for name, _ in made.named_parameters() if ".gate.net." in name
    }


def test_every_input_has_the_weights_that_its_gates_say(experts):
    base, states = experts
    made, gates, _ = ensembled(base, states)
    torch.manual_seed(1)
    for gate in gates:
        nn.init.normal_(gate.net[2].weight)
    ids, mask = torch.randint(0, 50, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    for gate in gates:
        gate.mask = mask
    out = made(ids, attention_mask=mask)[0]
    merged = task_arithmetic(dict(base.named_parameters()), list(states.values()), scale=INITIAL)
    for row in range(2):
        dense = copy.deepcopy(base)
        state = {**base.state_dict(), **{n: p.detach().clone() for n, p in merged.items()}}
        for block, gate in zip((0, 1), gates, strict=True):
            for part in ("intermediate.dense", "output.dense"):
                for kind in ("weight", "bias"):
                    name = f"encoder.layer.{block}.{part}.{kind}"
                    start = base.state_dict()[name]
                    changes = torch.stack([own[name] - start for own in states.values()])
                    state[name] = start + torch.tensordot(gate.weights[row].detach(), changes, 1)
        dense.load_state_dict(state)
        length = int(mask[row].sum())
        alone = dense(ids[row : row + 1, :length])[0][0]
        torch.testing.assert_close(out[row, :length], alone, atol=1e-5, rtol=1e-4)


def test_padding_and_company_do_not_move_a_gate():
    gate = Gate(8, 3)
    inputs = torch.randn(2, 5, 8)
    gate.mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    both = gate(inputs)
    gate.mask = None
    torch.testing.assert_close(both[0], gate(inputs[:1, :3])[0])
    torch.testing.assert_close(both[1], gate(inputs[1:])[0])


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (lambda: T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)), 2),
        (lambda: LlamaModel(LlamaConfig(vocab_size=9, **SIZES, num_key_value_heads=1)), 2),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0), 2),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), embed_dim=24, num_classes=0),
            5,
        ),
    ],
)
def test_blocks_are_known_by_their_names(model, blocks):
    found = blocks_of(model())
    assert len(found) == blocks
    assert all(len(names) in (2, 3) for names in found.values())
    assert not any("attn" in name or "attention" in name for names in found.values() for name in names)


def test_a_base_without_such_blocks_is_refused():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetModel(ResNetConfig(**sizes))
    recipe = Recipe(base="mine", experts={"a": "x", "b": "y"}, baselines=Baselines(dynamic=["wemoe"]))
    with pytest.raises(RunError, match=r"baselines.dynamic: wemoe mixes .* base mine; leave it out"):
        check_blocks(recipe, model)
