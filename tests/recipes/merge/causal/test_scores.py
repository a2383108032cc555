"""Scores against plain computations: log-likelihoods, choices with a shared cache, perplexity, generated answers."""

import math

import pytest
import torch
from torchmetrics.text import Perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.data.language_rows import Item, LanguageTask
from recipes.data.language_task import Generation
from recipes.merge.causal.encode import Encoder, Row
from recipes.merge.causal.scores import Speaker, _likeliest, completion_logs, judged, score
from tests.recipes.merge.causal import tiny_lm
from twinmerge import attach

CHOICES = (" glad", " sad today", " the old captain")
ITEMS = [
    Item("the cook is", " glad", choices=CHOICES),
    Item("is", " sad today", choices=CHOICES[:2]),
    Item("my brother was sorry to leave", " the old captain", choices=CHOICES),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_lm.save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    made = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():  # a random Llama says nearly the same of everything
        for parameter in made.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return made


def task(metric, generation=None):
    return LanguageTask("t", "pairs", metric, generation or Generation(max_new_tokens=4), ITEMS, ITEMS, ITEMS)


def rows_of(base, metric="choice"):
    return Encoder(AutoTokenizer.from_pretrained(base), 32).rows(task(metric), "test")


def alone(model, tokens, start):
    """Sum of log-probabilities of the tokens from `start` on, one sequence without padding or cache."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([list(tokens)])).logits[0].log_softmax(-1)
    return sum(float(logs[i - 1, tokens[i]]) for i in range(start, len(tokens)))


def twin_of(model, seed=1):
    """A twin of three random experts over a copy of the model."""
    import copy

    generator = torch.Generator().manual_seed(seed)
    names = [n for n, p in model.named_parameters() if "proj" in n]
    shapes = {n: p.shape for n, p in model.named_parameters()}
    experts = [
        {
            n: (
                torch.randn(shapes[n][0], 2, generator=generator),
                torch.randn(2, shapes[n][1], generator=generator) / 4,
            )
            for n in names
        }
        for _ in range(3)
    ]
    return attach(copy.deepcopy(model), ["a", "b", "c"], experts).eval()


def mixed(twin, index):
    """The mixture of row `index`: another one for each."""
    return torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])[index]


def router(rows):
    """A stand-in for a router: the mixture of each prompt by its length."""
    lengths = [row.prompt for row in rows]

    def route(ids, mask):
        return torch.stack([mixed(None, lengths.index(int(n))) for n in mask.sum(-1)])

    return route


def test_log_probabilities_are_those_of_each_row_alone(base, model):
    rows = rows_of(base)
    for row, logs in zip(rows, completion_logs(Speaker(model, 0), rows), strict=True):
        assert float(logs.sum()) == pytest.approx(alone(model, row.tokens, row.prompt), rel=1e-4)


def test_the_likeliest_choice_is_that_of_whole_sequences(base, model):
    rows = rows_of(base)
    totals = [[alone(model, [*r.tokens[: r.prompt], *c], r.prompt) for c in r.choices] for r in rows]
    best = [total.index(max(total)) for total in totals]
    for guess in range(3):  # whichever choice is called the right one
        told = [Row(r.tokens, r.labels, r.prompt, r.choices, guess) for r in rows]
        expected = [b == guess for b in best]
        with torch.no_grad():
            assert _likeliest(Speaker(model, 0), told).tolist() == expected


def test_every_row_of_a_twin_is_scored_under_its_own_mixture(base, model):
    twin, rows = twin_of(model), rows_of(base)
    speaker = Speaker(twin, 0, router(rows))
    logs = completion_logs(speaker, rows)
    totals = []
    for index, (row, mine) in enumerate(zip(rows, logs, strict=True)):
        with twin.mixture.use(mixed(twin, index)[None]):
            assert float(mine.sum()) == pytest.approx(alone(twin, row.tokens, row.prompt), rel=1e-4)
            totals.append([alone(twin, [*row.tokens[: row.prompt], *c], row.prompt) for c in row.choices])
    best = [total.index(max(total)) for total in totals]
    told = [Row(r.tokens, r.labels, r.prompt, r.choices, b) for r, b in zip(rows, best, strict=True)]
    with torch.no_grad():
        assert _likeliest(speaker, told).all()


def test_perplexity_is_that_of_torchmetrics_over_all_completions(base, model):
    rows = rows_of(base)
    metric = Perplexity(ignore_index=-100)
    for row in rows:
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            metric.update(model(input_ids=torch.tensor([row.tokens])).logits[:, :-1], labels[:, 1:])
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = score(Speaker(model, 0), task("perplexity"), rows, tokenizer, batch_size=2)
    assert found == pytest.approx(float(metric.compute()), rel=1e-4)


def test_generated_answers_are_those_of_each_prompt_alone(base, model):
    tokenizer, rows = AutoTokenizer.from_pretrained(base), rows_of(base)
    said = []
    for row in rows:
        prompt = torch.tensor([row.tokens[: row.prompt]])
        made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, pad_token_id=0)
        said.append(tokenizer.decode(made[0, row.prompt :], skip_special_tokens=True))
    told = [Row(r.tokens, r.labels, r.prompt, reference=s) for r, s in zip(rows, said, strict=True)]
    found = score(Speaker(model, 0), task("exact_match"), told, tokenizer, batch_size=2)
    assert found == 1.0
    wrong = [Row(r.tokens, r.labels, r.prompt, reference="nothing of the kind") for r in rows]
    assert score(Speaker(model, 0), task("exact_match"), wrong, tokenizer, batch_size=2) == 0.0


def test_sampled_answers_depend_on_the_seed_alone(base, model):
    drawn = task("token_f1", Generation(max_new_tokens=6, do_sample=True, temperature=1.5))
    tokenizer, rows = AutoTokenizer.from_pretrained(base), rows_of(base)
    torch.manual_seed(0)
    first = score(Speaker(model, 0), drawn, rows, tokenizer, batch_size=3, seed=5)
    torch.manual_seed(1)
    assert score(Speaker(model, 0), drawn, rows, tokenizer, batch_size=3, seed=5) == first


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("exact_match", 0.5), ("token_f1", (1 + 2 / 3) / 2), ("rouge1", (1 + 2 / 3) / 2), ("rougeL", (1 + 2 / 3) / 2)],
)
def test_generated_answers_are_judged_as_by_hand(metric, expected):
    assert judged(metric, ["K AE T", "red cat"], ["k ae t", "cat"]) == pytest.approx(expected, abs=1e-6)


def test_bleu_of_the_right_answer_is_one_and_of_another_lower():
    right = ["one two three four five", "six seven eight nine ten"]
    assert judged("bleu", right, right) == pytest.approx(1.0)
    near = judged("bleu", ["one two three four six", right[1]], right)
    assert 0.5 < near < 1.0
    assert math.isfinite(near)


def test_generated_features_are_those_of_the_last_token_that_each_prompt_begets(base, model):
    twin, rows = twin_of(model), rows_of(base)
    twin.router_reads = "generated"
    speaker = Speaker(twin, 0)
    prompts = [row.tokens[: row.prompt] for row in rows]
    left, right = twin.features(*speaker.batch(prompts)), twin.features(*speaker.batch(prompts, left=False))
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0
        )
        with torch.no_grad():
            state = model.model(input_ids=said)[0][0, -1]
        torch.testing.assert_close(left[index], state, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(right[index], state, rtol=1e-3, atol=1e-4)
