"""Merges with data and dynamic rivals of language models, each against a plain computation of one row at a time."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from recipes.data.language_task import Generation, Language
from recipes.data.task_source import TaskSource
from recipes.errors import RecipeError
from recipes.merge.baselines import Baselines, Shared
from recipes.merge.causal.compared import speaker_of
from recipes.merge.causal.encode import IGNORED
from recipes.merge.causal.scores import Panel, Speaker, _likeliest, answers, completion_logs, score
from recipes.merge.causal.with_data import Rows
from recipes.merge.dynamic import layered
from recipes.merge.layers import check_layers
from recipes.merge.schema import Recipe, Training
from recipes.merge.wemoe import blocks_of, ensembled
from tests.recipes.merge.causal import tiny_lm
from tests.recipes.merge.causal.test_scores import alone, rows_of, task
from twinmerge.functional import task_arithmetic

TOKENS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


class Quiet:
    """A run folder that only hands things on."""

    def say(self, text):
        self.said = text

    def phase(self, title, total):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def track(self, things):
        return things

    def advance(self):
        pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_lm.save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def family(request, base):
    """A model and three experts' parameters."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(0)
    if not request.param:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    with torch.no_grad():  # a random Llama says nearly the same of everything
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    states = {
        name: {
            n: p.detach() + 0.1 * p.detach().std() * torch.randn(p.shape, generator=draw) if p.dim() > 1 else p.detach()
            for n, p in model.named_parameters()
        }
        for name in "abc"
    }
    return model, states


@pytest.fixture
def seen(base, family):
    """What the methods look at: two tasks of three rows of several lengths."""
    model, _ = family
    rows = rows_of(base)
    recipe = SimpleNamespace(
        seed=3, baselines=Baselines(data_items=3, data_steps=4), training=SimpleNamespace(batch_size=2)
    )
    both = {"a": rows, "b": rows[::-1]}
    bench = SimpleNamespace(
        recipe=recipe,
        folder=Quiet(),
        rows={"train": both, "validation": both},
        merged=[SimpleNamespace(name=name) for name in both],
    )
    changed = [n for n, p in model.named_parameters() if p.dim() > 1]
    return Rows(bench, model, 0, changed, None)


def with_weights(model, state):
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(state[name])
    return made.eval()


def test_fisher_information_is_that_of_drawn_tokens_at_the_learned_places(family, seen):
    model, states = family
    expert, draw = with_weights(model, states["a"]), torch.Generator().manual_seed(3)
    expected = {n: torch.zeros_like(p) for n, p in expert.named_parameters() if p.dim() > 1}
    rows = seen.bench.rows["train"]["a"]
    for row in rows:
        expert.zero_grad()
        logs = expert(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
        learned = [i for i, label in enumerate(row.labels) if label != IGNORED]
        said = torch.multinomial(logs[[i - 1 for i in learned]].detach().exp(), 1, generator=draw)[:, 0]
        sum(logs[i - 1, token] for i, token in zip(learned, said.tolist(), strict=True)).backward()
        for name, parameter in expert.named_parameters():
            if name in expected:
                expected[name] += parameter.grad**2 / len(rows)
    found = seen.information("a", with_weights(model, states["a"]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_gram_matrices_are_those_of_every_row_alone(family, seen):
    model, states = family
    expert, inputs = with_weights(model, states["b"]), {}
    for name, layer in expert.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, given, name=f"{name}.weight": inputs.setdefault(name, []).append(given[0][0].detach())
            )
    with torch.no_grad():
        for row in seen.bench.rows["train"]["b"]:
            expert(torch.tensor([row.tokens]))
    found = seen.grams("b", with_weights(model, states["b"]))
    tied = model.config.tie_word_embeddings
    assert found.keys() == inputs.keys() - ({"lm_head.weight"} if tied else set())
    for name, gram in found.items():
        x = torch.cat(inputs[name]).double().numpy()
        np.testing.assert_allclose(gram, x.T @ x / len(x), rtol=1e-3, atol=1e-4)


def test_entropies_are_of_the_token_behind_every_prompt(family, seen):
    model, states = family
    other = with_weights(model, states["c"])
    logits = seen.logits()
    for step, expected in ((0, (0, 1)), (1, (2,)), (2, (0, 1))):  # two prompts a batch, in order of their length
        found = logits({n: p.detach() for n, p in other.named_parameters()}, step)
        assert len(found) == 2
        prompts = sorted((row.tokens[: row.prompt] for row in seen.bench.rows["validation"]["a"]), key=len)
        for row, place in enumerate(expected):
            with torch.no_grad():
                wanted = other(torch.tensor([prompts[place]])).logits[0, -1]
            torch.testing.assert_close(found[0][row], wanted, rtol=1e-3, atol=1e-3)


def test_every_prompt_is_answered_by_the_model_that_the_router_picks(base, family):
    model, states = family
    tokenizer, rows = AutoTokenizer.from_pretrained(base), rows_of(base)
    models = [with_weights(model, state) for state in states.values()]
    lengths = [row.prompt for row in rows]
    picked = [2, 0, 2]

    def route(ids, mask):
        return torch.eye(3)[[picked[lengths.index(int(n))] for n in mask.sum(-1)]]

    panel = Panel([Speaker(one, 0) for one in models], Speaker(model, 0, route))
    spent = sum(-alone(models[one], row.tokens, row.prompt) for one, row in zip(picked, rows, strict=True))
    count = sum(len(row.tokens) - row.prompt for row in rows)
    found = score(panel, task("perplexity"), rows, tokenizer, batch_size=3)
    assert found == pytest.approx(float(np.exp(spent / count)), rel=1e-3)
    said = []
    for one, row in zip(picked, rows, strict=True):
        made = models[one].generate(torch.tensor([row.tokens[: row.prompt]]), **TOKENS)
        said.append(tokenizer.decode(made[0, row.prompt :], skip_special_tokens=True))
    ticks = []
    told = [replace(row, reference=text) for row, text in zip(rows, said, strict=True)]
    spoken = task("exact_match", Generation(max_new_tokens=4))
    assert score(panel, spoken, told, tokenizer, batch_size=2, tick=lambda: ticks.append(1)) == 1.0
    assert len(ticks) == 2


def test_gates_read_the_prompt_alone_and_keep_to_it(base, family):
    model, states = family
    tokenizer, rows = AutoTokenizer.from_pretrained(base), rows_of(base)
    torch.manual_seed(1)
    made, gates, size = ensembled(model, states)
    assert size > 0
    for gate in gates:
        nn.init.normal_(gate.net[0].weight, std=0.5)
        nn.init.normal_(gate.net[2].weight, std=0.5)
    speaker = speaker_of(made, gates, 0)
    start = {n: p.detach() for n, p in model.named_parameters()}
    merged = task_arithmetic(start, list(states.values()), scale=0.3)
    weights = speaker.weights([row.tokens[: row.prompt] for row in rows])
    assert weights.shape == (3, 2, 3)
    logs = completion_logs(speaker, rows)
    best = []
    for index, (row, mine) in enumerate(zip(rows, logs, strict=True)):
        own = speaker.weights([row.tokens[: row.prompt]])[0]  # the prompt alone, no padding
        torch.testing.assert_close(weights[index], own, rtol=1e-3, atol=1e-4)
        state = dict(merged)
        for block, names in enumerate(blocks_of(model).values()):
            for name in names:
                changes = torch.stack([one[f"{name}.weight"] - start[f"{name}.weight"] for one in states.values()])
                state[f"{name}.weight"] = start[f"{name}.weight"] + torch.tensordot(own[block], changes, 1)
        dense = with_weights(model, state)
        assert float(mine.sum()) == pytest.approx(alone(dense, row.tokens, row.prompt), rel=1e-3)
        totals = [alone(dense, [*row.tokens[: row.prompt], *c], row.prompt) for c in row.choices]
        best.append(totals.index(max(totals)) == row.answer)
        for beams in (1, 2):
            generation = Generation(max_new_tokens=4, num_beams=beams)
            prompt = torch.tensor([row.tokens[: row.prompt]])
            wanted = dense.generate(prompt, num_beams=beams, **TOKENS)[0, row.prompt :]
            prompts = [one.tokens[: one.prompt] for one in rows]
            with torch.no_grad():
                said = list(answers(speaker, prompts, generation, tokenizer))
            assert said[index] == tokenizer.decode(wanted, skip_special_tokens=True).strip()
    with torch.no_grad():
        assert _likeliest(speaker, rows).tolist() == best
    assert all(gate.held is None and gate.mask is None for gate in gates)


@pytest.mark.parametrize("kind", ["smile", "arrow"])
def test_experts_by_token_answer_a_batch_as_every_row_alone(base, family, kind):
    model, states = family
    made, _ = layered(model, states, 8, kind)  # at full rank all experts see as much of a token, and any may be taken
    rows = rows_of(base)
    for row, logs in zip(rows, completion_logs(Speaker(made, 0), rows), strict=True):
        assert float(logs.sum()) == pytest.approx(alone(made, row.tokens, row.prompt), rel=1e-3)
    made, _ = layered(model, states, 32, kind)
    layer, name = made.model.layers[1].mlp.up_proj, "model.layers.1.mlp.up_proj.weight"
    inputs = torch.randn(2, 5, 32)
    wanted = sum(layer.gates(inputs)[..., t, None] * (inputs @ one[name].T) for t, one in enumerate(states.values()))
    torch.testing.assert_close(layer(inputs), wanted, atol=1e-3, rtol=1e-3)
    mean = torch.stack([state["model.embed_tokens.weight"] for state in states.values()]).mean(0)
    torch.testing.assert_close(made.model.embed_tokens.weight.detach(), mean)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"data": ["regmean"]}, "baselines.data: regmean merges linear layers, and the base .* has none; leave it out"),
        ({"shared": "regmean"}, "shared.method: regmean merges linear layers, and the base .* has none"),
        ({"dynamic": ["arrow"]}, "baselines.dynamic: arrow merges linear layers, and the base .* has none"),
        ({"dynamic": ["wemoe"]}, "baselines.dynamic: wemoe mixes the feed-forward layers of a transformer"),
    ],
)
def test_rows_of_layers_that_a_base_lacks_are_refused_before_the_run(tmp_path, asked, sentence):
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 20}
    GPT2Config(architectures=["GPT2LMHeadModel"], **sizes).save_pretrained(tmp_path)  # its layers are no nn.Linear
    task = {"source": "csv", "path": "a.csv", "language": Language()}
    recipe = Recipe(
        base=str(tmp_path),
        tasks=[TaskSource(name=name, **task) for name in "ab"],
        shared=Shared(asked.pop("shared", "average")),
        baselines=Baselines(**asked),
        training=Training(model="causal"),
    )
    with pytest.raises(RecipeError, match=sentence):
        check_layers(recipe, RecipeError)
    recipe.baselines, recipe.shared = Baselines(data=["fisher"], dynamic=["tsv_c"]), Shared("adamerging")
    assert check_layers(recipe, RecipeError) == "looks at data or layers: adamerging, fisher, tsv_c"
