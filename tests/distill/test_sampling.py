"""Samples of students and teachers: what is drawn, whose turn it is, what is learned, and the same on resume."""

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from distill import DistillError, DistillModule, LanguageNetwork
from distill.draws import Draws
from distill.order import ViewLoader, ViewOrder
from distill.sampling import Sampler, check_samples, continued, padded, prompts_of
from distill.tokens import Blocks
from tests.distill.nets import CHANGES, trainer

LENGTH, IDS = 12, 30
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*"),
]


def llama(width, seed=None, ids=IDS, end=None, dropout=0.0):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = LlamaConfig(
        vocab_size=ids,
        hidden_size=width,
        intermediate_size=2 * width,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
        attention_dropout=dropout,
        initializer_range=0.5,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width if seed is None else seed)
        return LlamaForCausalLM(config)


def words(rows=8, seed=0):
    return torch.randint(1, IDS, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def module(terms, samples=None, **options):
    students = {name: llama(8, 3) for name in terms}
    changes = CHANGES | {"epochs": 2, "warmup_epochs": 0, "learning_rate": 0.05, **options.pop("changes", {})}
    settings = {"prompt_tokens": 4, "task": "language", "log_gradients_every": 0} | options
    return DistillModule(students, llama(16), terms, changes=changes, samples=samples, **settings)


def batches(rows=8, parts=4, **fields):
    ids = words(rows)
    split = {name: value.split(parts) for name, value in fields.items()}
    return [
        {"input_ids": part, "labels": part} | {name: values[i] for name, values in split.items()}
        for i, part in enumerate(ids.split(parts))
    ]


def weights(made, name):
    return torch.cat([p.detach().flatten() for p in made.students[name].parameters()])


def test_samples_are_what_the_model_says():
    """Token by token from whole forward passes without a cache, the same uniform numbers, gives the same text."""
    network = LanguageNetwork(llama(8, dropout=0.5)).train()
    prompts = list(words(3)[:, :4])
    found = continued(network, prompts, [8, 8, 5], 1.3, 7, IDS)
    assert [len(row) for row in found] == [8, 8, 5]
    assert all(m.training for m in network.modules())
    again = continued(network, prompts, [8, 8, 5], 1.3, 7, IDS)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(found, continued(network, prompts, [8, 8, 5], 1.3, 8, IDS), strict=True)
    )
    likely = continued(network, prompts, [8, 8, 8], 0.0, 7, IDS)
    network.eval()
    with torch.no_grad():
        for prompt, said in zip(prompts, likely, strict=True):
            ids = prompt
            for token in said:
                assert int(network.model(input_ids=ids[None]).logits[0, -1].argmax()) == int(token)
                ids = torch.cat([ids, token[None]])


def test_samples_have_the_models_distribution():
    network = LanguageNetwork(llama(8))
    prompt = words(1)[0, :4]
    found = torch.stack(continued(network, [prompt] * 4000, [1] * 4000, 2.0, 1, IDS - 5)).squeeze(-1)
    with torch.no_grad():
        wanted = (network.model.eval()(input_ids=prompt[None]).logits[0, -1, : IDS - 5] / 2).softmax(-1)
    counts = torch.bincount(found, minlength=IDS - 5)
    assert len(counts) == IDS - 5  # ids that another model does not know are never said
    assert float(((counts - 4000 * wanted) ** 2 / (4000 * wanted)).sum()) < 55  # chi-square of 24, p about 3e-4


def test_texts_end_where_the_model_ends_them():
    network = LanguageNetwork(llama(8))
    prompts = list(words(6)[:, :4])
    whole = continued(network, prompts, [8] * 6, 1.0, 3, IDS)
    end = int(whole[0][3])
    network.model.generation_config.eos_token_id = [end]
    for full, cut in zip(whole, continued(network, prompts, [8] * 6, 1.0, 3, IDS), strict=True):
        place = (full == end).nonzero()
        assert torch.equal(cut, full[: int(place[0]) + 1] if len(place) else full)


def test_prompts_are_where_labels_begin():
    ids = words(3)
    labels = ids.clone()
    labels[1, :6] = -100
    labels[2] = -100
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # padded on the left
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    prompts, counts = prompts_of(batch, 4)
    assert [row.tolist() for row in prompts] == [ids[0, :4].tolist(), ids[1, 2:6].tolist(), ids[2].tolist()]
    assert counts == [8, 6, 0]
    made = padded(prompts, [ids[0, 4:], ids[1, 6:8], ids[2, :0]], ids.device)
    assert made["labels"][0].tolist() == [-100] * 4 + ids[0, 4:].tolist()
    assert made["labels"][1].tolist() == [-100] * 4 + ids[1, 6:8].tolist() + [-100] * 6
    assert made["attention_mask"].sum(-1).tolist() == [12, 6, 12]
    assert not (made["labels"][2] != -100).any()
    assert "attention_mask" not in padded(prompts[:1], [ids[0, 4:]], ids.device)


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_an_update_on_own_samples_is_that_of_a_loop_by_hand(tmp_path, chunk, beta):
    """The loop samples by transformers' own generate, so that nothing of the sampler is in it."""
    terms = {"gkd": {"jsd": {"beta": beta, "temperature": 1.5}}}
    changes = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5}
    made = module(terms, {"gkd": {"own": 1.0}}, sampling_temperature=0.0, chunk=chunk, changes=changes)
    plain, teacher = llama(8, 3), llama(16).eval()
    ids = words(4)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(
        made, DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None)
    )
    plain.eval()
    own = plain.generate(input_ids=ids[:, :4], attention_mask=torch.ones(4, 4), max_new_tokens=8, do_sample=False)
    z, t = (model(input_ids=own).logits[:, 3:-1].flatten(0, 1).double() / 1.5 for model in (plain, teacher))
    p, q = z.softmax(-1), t.softmax(-1).detach()
    m = beta * q + (1 - beta) * p
    if beta == 0:
        rows = (q * (q.log() - p.log())).sum(-1)
    elif beta == 1:
        rows = (p * (p.log() - q.log())).sum(-1)
    else:
        rows = beta * (q * (q.log() - m.log())).sum(-1) + (1 - beta) * (p * (p.log() - m.log())).sum(-1)
    (1.5**2 * rows.mean()).backward()
    wanted = torch.cat([(w - 0.5 * w.grad).detach().flatten() for w in plain.parameters()])
    torch.testing.assert_close(weights(made, "gkd"), wanted, rtol=2e-4, atol=2e-6)


def test_the_mixture_is_a_function_of_seed_and_step():
    sampler = Sampler({"a": {"own": 0.3, "teacher": 0.5}, "b": {"own": 0.0}}, 4, 1.0)
    found = [sampler.source("a", 5, epoch, i) for epoch in range(20) for i in range(100)]
    wanted = [Draws(5, 11, epoch, i).uniform() for epoch in range(20) for i in range(100)]
    assert found == ["own" if u < 0.3 else "teacher" if u < 0.8 else "data" for u in wanted]
    shares = [np.mean([source == kind for source in found]) for kind in ("own", "teacher", "data")]
    assert shares == pytest.approx([0.3, 0.5, 0.2], abs=0.04)
    assert {sampler.source("b", 5, 0, i) for i in range(50)} == {"data"}
    assert sampler.samples.keys() == {"a"}


def test_students_beside_each_other_end_where_they_would_have_ended_alone(tmp_path):
    terms = {"ce": {"hard": {}}, "gkd": {"jsd": {"beta": 0.5}}, "said": {"hard": {}}, "kd": {"kd": {}}}
    samples = {"gkd": {"own": 0.5}, "said": {"teacher": 1.0}}
    kept = words(8, seed=5)
    kept[3, 7:] = -1

    def train(names, together=1):
        torch.manual_seed(2)
        chosen = {name: terms[name] for name in names}
        made = module(chosen, {n: s for n, s in samples.items() if n in names})
        loader = DataLoader(batches(8, 2, teacher_samples=kept), batch_size=None)
        trainer(tmp_path, max_epochs=2, limit_val_batches=0, accumulate_grad_batches=together).fit(made, loader)
        return {name: weights(made, name) for name in names}

    for together in (1, 2):
        beside = train(list(terms), together)
        for name in terms:
            torch.testing.assert_close(train([name], together)[name], beside[name], rtol=0, atol=0)
    assert len({float(value.sum()) for value in beside.values()}) == len(terms)


@pytest.mark.parametrize("chunk", [0, 256])
def test_sequences_of_the_teacher_are_learnt_as_labels(tmp_path, chunk):
    kept = words(4, seed=5)
    kept[1, 9:] = -1
    changes = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5}
    made = module(
        {"s": {"hard": {"kind": "ce"} if not chunk else {}}}, {"s": {"teacher": 1.0}}, chunk=chunk, changes=changes
    )
    loader = DataLoader(batches(4, 4, teacher_samples=kept), batch_size=None)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(made, loader)
    plain = llama(8, 3)
    logs = plain(input_ids=kept.clamp(min=0), attention_mask=(kept >= 0).long()).logits.log_softmax(-1)
    terms = [-logs[row, i, kept[row, i + 1]] for row in range(4) for i in range(3, LENGTH - 1) if kept[row, i + 1] >= 0]
    torch.stack(terms).mean().backward()
    wanted = torch.cat([(w - 0.5 * w.grad).detach().flatten() for w in plain.parameters()])
    torch.testing.assert_close(weights(made, "s"), wanted, rtol=1e-4, atol=1e-6)
    with pytest.raises(DistillError, match="the batch has no teacher_samples"):
        trainer(tmp_path, max_epochs=1).fit(made, DataLoader(batches(4, 4), batch_size=None))


def test_accumulated_samples_weigh_by_token(tmp_path):
    """Two batches of the teacher's texts of other lengths are one update of all their tokens."""
    kept = words(8, seed=5)
    kept[:4, 6:] = -1

    def update(parts, together):
        made = module(
            {"s": {"hard": {}}, "other": {"hard": {}}},
            {"s": {"teacher": 1.0}},
            changes={"epochs": 1, "momentum": 0.0, "learning_rate": 0.5},
        )
        loader = DataLoader(batches(8, parts, teacher_samples=kept), batch_size=None)
        trainer(tmp_path, max_epochs=1, limit_val_batches=0, accumulate_grad_batches=together).fit(made, loader)
        return torch.cat([weights(made, "s"), weights(made, "other")])

    torch.testing.assert_close(update(4, 2), update(8, 1), rtol=1e-4, atol=1e-6)


class SaveOnce(lightning.Callback):
    """Writes a checkpoint after some updates, within an epoch."""

    def __init__(self, place, step):
        self.place, self.step = place, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.place)


@pytest.mark.parametrize("step", [2, 6])
def test_a_resumed_training_samples_what_an_unbroken_one_does(tmp_path, step):
    def fit(start=None):
        torch.manual_seed(4)
        made = module({"gkd": {"jsd": {"beta": 0.5}}}, {"gkd": {"own": 0.6}})
        callbacks = [] if start else [SaveOnce(tmp_path / "some.ckpt", step)]
        run = trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=callbacks)
        loader = ViewLoader(Blocks(words(8)), ViewOrder(8, 2, seed=3), drop_last=True)
        run.fit(made, loader, ckpt_path=start)
        return weights(made, "gkd")

    whole = fit()
    assert torch.equal(fit(tmp_path / "some.ckpt"), whole)


@pytest.mark.parametrize(
    ("terms", "samples", "task", "sentence"),
    [
        ({"a": {"kd": {}}}, {"a": {"own": 0.5}}, "images", "samples are of language models, but the task is images"),
        ({"a": {"kd": {}}}, {"b": {"own": 0.5}}, "language", "samples are given for 'b', but the students are a"),
        (
            {"a": {"kd": {}}},
            {"a": {"mine": 0.5}},
            "language",
            "samples of a has no 'mine'; accepted are own and teacher",
        ),
        ({"a": {"kd": {}}}, {"a": {"own": 1.5}}, "language", "the share own of a is 1.5, but it must be from 0 to 1"),
        ({"a": {"kd": {}}}, {"a": {"own": 0.7, "teacher": 0.7}}, "language", "the shares of a add up to 1.4"),
        (
            {"a": {"hard": {}, "kd": {}}},
            {"a": {"own": 0.5}},
            "language",
            "its own samples, whose labels are what it says",
        ),
        (
            {"a": {"hard": {}, "uld": {}}},
            {"a": {"teacher": 1.0}},
            "language",
            "which cannot read its samples nor be read",
        ),
    ],
)
def test_samples_that_cannot_be_are_refused(terms, samples, task, sentence):
    with pytest.raises(DistillError, match=sentence):
        check_samples(samples, terms, task)


def test_a_loss_without_its_teacher_is_refused_and_not_nothing(tmp_path):
    made = DistillModule(llama(8), None, {"kd": {}}, task="language", changes=CHANGES | {"epochs": 1})
    with pytest.raises(DistillError, match="the term kd needs a teacher, got none"):
        trainer(tmp_path, max_epochs=1).fit(made, DataLoader(batches(4, 4), batch_size=None))


def test_a_student_says_no_token_that_its_teacher_does_not_know(tmp_path):
    students = {"a": llama(8, 3, ids=IDS)}
    made = DistillModule(
        students,
        llama(16, ids=IDS - 12),
        {"a": {"jsd": {"beta": 0.5}}},
        task="language",
        samples={"a": {"own": 1.0}},
        prompt_tokens=4,
        changes=CHANGES | {"epochs": 1},
    )
    ids = words(4) % (IDS - 12)
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(
        made, DataLoader([{"input_ids": ids, "labels": ids}], batch_size=None)
    )
    assert not torch.equal(weights(made, "a"), F.pad(weights(made, "a")[1:], (0, 1)))
