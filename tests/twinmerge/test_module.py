"""Fine-tuning through the Trainer: every kind of model, LoRA, twins in part and whole, checkpoints, the CLI."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import twinmerge
from tests.twinmerge import tiny
from tests.twinmerge.toy import ToyData
from twinmerge import FinetuneModule, Head, attach
from twinmerge.module import task_metric
from twinmerge.routed_layers import ADDED

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*SpearmanCorrcoef.*buffer.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
]


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "default_root_dir": folder, "num_sanity_val_steps": 0}
    return lightning.Trainer(**(settings | options))


def twin_of(kind: str = "linear", layers: int = 2) -> Any:
    model = tiny.bert(layers)
    twin = attach(model, tiny.TASKS, tiny.differences(model, skip=("pooler",)), tiny.router(32, kind=kind))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin.heads.update({task: Head(32, 2) for task in tiny.TASKS})
    return twin.eval()


def state(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "classification": (tiny.bert, {"labels": 3, "metric": "accuracy_f1"}, {"labels": 3}),
    "last token": (tiny.llama_body, {"labels": 2, "pooling": "last", "metric": "mcc"}, {}),
    "regression": (tiny.bert, {"labels": 1, "metric": "pearson_spearman"}, {"labels": 1}),
    "fixed head": (tiny.bert, {"labels": 2, "heads": "fixed"}, {}),
    "classifier": (lambda: tiny.bert_classifier(2), {}, {}),
    "causal": (tiny.gpt2, {}, {"causal": True}),
    "lora": (tiny.bert, {"labels": 2, "lora_rank": 2}, {}),
    "lora causal": (tiny.llama, {"lora_rank": 2}, {"causal": True}),
    "frozen": (tiny.bert, {"labels": 2, "frozen": ("embeddings.", "pooler.")}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_learns_and_is_scored(kind: str, tmp_path: Path) -> None:
    build, options, data = KINDS[kind]
    module = FinetuneModule(build(), learning_rate=1e-2, warmup=0.0, **options)
    before, fit = state(module), trainer(tmp_path, max_epochs=3)
    fit.fit(module, datamodule=ToyData(**data))
    metrics = fit.callback_metrics
    assert metrics["validation/loss"].isfinite()
    assert ("validation/score" in metrics) == ("causal" not in kind)
    first = float(
        trainer(tmp_path).validate(FinetuneModule(build(), **options), ToyData(**data), verbose=False)[0][
            "validation/loss"
        ]
    )
    train = ToyData(**data)
    train.val_dataloader = train.train_dataloader  # type: ignore[method-assign]
    assert trainer(tmp_path).validate(module, train, verbose=False)[0]["validation/loss"] < first
    changed = {n for n, p in module.named_parameters() if not torch.equal(before[n], p)}
    trainable = {
        n for n, p in module.named_parameters() if p.requires_grad and (kind == "classifier" or "pooler" not in n)
    }
    assert changed == trainable
    if "lora" in kind:
        assert {n for n in changed if "lora_" not in n} <= {"head.out_proj.weight", "head.out_proj.bias"}
    if kind == "fixed head":
        assert not any(n.startswith("head.") for n in changed)
    test = fit.test(module, datamodule=ToyData(**data), verbose=False)[0]
    assert set(test) >= {"test/loss"}


PARTS = {
    "router": ("router",),
    "heads": ("heads", "router"),
    "experts": ("experts",),
    "shared": ("shared",),
    "all": ("router", "shared", "experts", "heads"),
}


@pytest.mark.parametrize("parts", PARTS)
def test_a_loaded_twin_is_fine_tuned_in_part_or_whole(parts: str, tmp_path: Path) -> None:
    loaded = twinmerge.load(twinmerge.save(twin_of(), tmp_path / "twin"))
    module = FinetuneModule(loaded.train_only(*PARTS[parts]), question="topic", learning_rate=1e-2)
    before = state(module.model)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(module, datamodule=ToyData())
    changed = {n for n, p in module.model.named_parameters() if not torch.equal(before[n], p)}
    kinds = {
        n.split(".")[0]
        if n.startswith(("router", "heads"))
        else "shared"
        if ADDED.isdisjoint(n.split("."))
        else "experts"
        for n in changed
    }
    assert kinds == set(PARTS[parts])
    assert not any("heads.spam" in n or "pooler" in n for n in changed)
    module.eval()
    again = twinmerge.load(twinmerge.save(module.model, tmp_path / "tuned"))
    batch = tiny.text()
    with torch.no_grad():
        a, b = (m.classify(**batch, head="topic") for m in (module.model, again))
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.router_weights, b.router_weights, rtol=1e-4, atol=1e-4)


def test_a_frozen_router_keeps_its_statistics_and_drops_nothing(tmp_path: Path) -> None:
    twin = twin_of("mlp").train_only("experts")
    buffers = {n: b.clone() for n, b in twin.router.named_buffers()}
    module = FinetuneModule(twin, question="spam")
    assert not module.model.router.training
    batch = tiny.text()
    assert torch.equal(module.model.route(**batch), module.model.route(**batch))
    trainer(tmp_path).fit(module, datamodule=ToyData())
    assert all(torch.equal(buffers[n], b) for n, b in twin.router.named_buffers())
    assert twin_of("mlp").train().router.training


def test_checkpoints_hold_plain_values_and_no_frozen_expert(tmp_path: Path) -> None:
    module = FinetuneModule(twin_of().train_only("router", "heads"), question="spam", learning_rate=1e-2)
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=ToyData())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["question"] == "spam"
    assert "model" not in content["hyper_parameters"]
    assert not any("experts_" in name for name in content["state_dict"])
    again = FinetuneModule.load_from_checkpoint(
        tmp_path / "last.ckpt", model=twin_of().train_only("router", "heads"), weights_only=True
    )
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in module.named_parameters())
    resumed = FinetuneModule(twin_of().train_only("router", "heads"), question="spam", learning_rate=1e-2)
    trainer(tmp_path, max_epochs=2).fit(resumed, datamodule=ToyData(), ckpt_path=tmp_path / "last.ckpt")
    assert not torch.equal(resumed.model.router.net.weight, module.model.router.net.weight)


@pytest.mark.parametrize("kind", ["classification", "lora", "fixed head"])
def test_checkpoints_of_plain_models_load_again(kind: str, tmp_path: Path) -> None:
    build, options, data = KINDS[kind]
    build().save_pretrained(tmp_path / "base")
    module = FinetuneModule(str(tmp_path / "base"), **options)
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=ToyData(**data))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = FinetuneModule.load_from_checkpoint(
        tmp_path / "last.ckpt", weights_only=True
    )  # the model's folder is in it
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in module.named_parameters())


@pytest.mark.parametrize("parts", ["router", "experts", "all"])
def test_mixed_precision(parts: str, tmp_path: Path) -> None:
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        module = FinetuneModule(twin_of().train_only(*PARTS[parts]), question="spam", learning_rate=1e-3)
        fit = trainer(tmp_path, precision=precision)
        fit.fit(module, datamodule=ToyData())
        scores.append(float(fit.callback_metrics["validation/loss"]))
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert abs(scores[0] - scores[1]) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks at the weights
def test_compiled_training_step_equals_eager() -> None:
    batch = next(iter(ToyData().train_dataloader()))
    losses, grads = [], []
    for compiled in (False, True):
        module = FinetuneModule(twin_of(layers=1).train_only("router", "experts", "heads"), question="spam")
        loss = torch.compile(module.loss, backend="aot_eager") if compiled else module.loss
        value = loss(batch)[0]
        value.backward()
        losses.append(float(value.detach()))
        grads.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
    torch._dynamo.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-6)


def test_lightning_cli_runs_it_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    tiny.bert().save_pretrained(tmp_path / "base")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
seed_everything: 0
model: {{model: {tmp_path / "base"}, labels: 2, frozen: [embeddings., pooler.], learning_rate: 0.01}}
data: {{labels: 2, rows: 16}}
trainer:
  {{max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false,
    enable_checkpointing: false}}
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fit"])
    cli = LightningCLI(FinetuneModule, ToyData, args=["fit", "--config", str(config)], save_config_callback=None)
    assert list(cli.model.hparams["frozen"]) == ["embeddings.", "pooler."]
    assert cli.trainer.callback_metrics["validation/score"].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": "best"}, "heads: expected one of 'trained', 'fixed', got 'best'"),
        (
            {"pooling": "max", "labels": 2},
            "pooling: expected one of 'mean', 'first', 'last', 'patches', 'first_patches', 'pooled', got 'max'",
        ),
        ({"metric": "bleu"}, "metric: expected one of 'accuracy', .*, got 'bleu'"),
        ({"labels": 1}, "choose pearson_spearman"),
        ({"question": "ham"}, r"question 'ham' is no head of the model \(spam, topic, mood\)"),
        ({"lora_rank": 2}, "a twin has low-rank experts of its own"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FinetuneModule(twin_of(), **options)
    assert "\n" not in str(caught.value)


def test_a_question_needs_a_twin() -> None:
    with pytest.raises(ValueError, match="it is no twin"):
        FinetuneModule(tiny.bert(), question="spam")


def test_scores_are_means_of_their_parts() -> None:
    metric = task_metric("accuracy_f1", 3)
    metric.update(torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2]))
    assert float(metric.compute()["accuracy"]) == pytest.approx(0.75)
    assert copy.deepcopy(metric).compute().keys() == {"accuracy", "f1"}
