"""The router's training: one process and two end with the same weights; temperature, neighbours, top-k."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.nursery import Nursery
from tests.twinmerge import tiny
from tests.twinmerge.train_ddp import features, main
from twinmerge import FeatureDataModule, Router, RouterModule, fit_temperature, knn_router

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists.*"),
]


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, nursery: Nursery) -> None:
    out = [tmp_path / f"{devices}.safetensors" for devices in (1, 2)]
    main(out[0], 1)
    for done in nursery.ranks("-m", "tests.twinmerge.train_ddp", out[1], 2, folder=tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    results = [load_file(file) for file in out]
    assert results[0].keys() == results[1].keys()
    assert any(n.startswith("twin.") and "experts_" in n for n in results[0])
    for name, value in results[0].items():
        tolerance = 1e-5 if name.startswith("router") else 1e-3  # the twin's Adam divides by near-zero gradients
        torch.testing.assert_close(
            results[1][name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_training_learns_to_name_the_task(kind: str, tmp_path: Path) -> None:
    lightning.seed_everything(0, verbose=False)
    module = RouterModule(8, 3, kind=kind, learning_rate=0.02)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    fit = lightning.Trainer(max_epochs=8, accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0, **quiet)
    data = FeatureDataModule(features(), features(), batch_size=11, seed=0)
    fit.fit(module, datamodule=data)
    assert fit.callback_metrics["validation/accuracy"] > 0.6
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = RouterModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    weights = module.eval()(features()[0])
    torch.testing.assert_close(again(features()[0]), weights, rtol=0, atol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(44))


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.integers(1, 6),
    top_k=st.integers(0, 7),
    temperature=st.floats(0.05, 20.0),
    kind=st.sampled_from(["linear", "mlp", "knn"]),
)
def test_weights_are_a_mixture(tasks: int, top_k: int, temperature: float, kind: str) -> None:
    assume(top_k <= tasks)
    bank = {"bank": 9} if kind == "knn" else {}
    router = tiny.router(4, tasks, kind, top_k=top_k, temperature=temperature, **bank).eval()
    if kind == "knn":
        router.bank.copy_(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
        router.bank_task.copy_(torch.arange(9) % tasks)
    with torch.no_grad():
        weights = router.weights(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert (weights >= 0).all()
    if 0 < top_k < tasks:
        assert ((weights > 0).sum(-1) <= top_k).all()
    again = Router(**router.spec())
    again.load_state_dict(router.state_dict())


def logits_of(router: Any, scale: float) -> tuple[Tensor, Tensor]:
    """Features whose task is drawn from the router's own softmax, sharpened or flattened."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=generator)
    with torch.no_grad():
        task = torch.multinomial((router(x) / scale).softmax(-1), 1, generator=generator).flatten()
    return x, task


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_temperature_is_found_again(scale: float) -> None:
    router = tiny.router(4, 3)
    router.net.weight.data *= 4
    x, task = logits_of(router, scale)
    assert fit_temperature(router, x, task) == pytest.approx(scale, rel=0.15)
    assert router.temperature == router.spec()["temperature"]


def test_neighbours_vote() -> None:
    x, task = features()
    router = knn_router(x, task, 3, neighbours=5)
    assert (router(x).argmax(-1) == task).float().mean() > 0.6
    scaled = (x - x.mean(0)) / x.std(0)
    near = torch.nn.functional.cosine_similarity(scaled[:1], scaled, dim=-1).topk(5).indices
    votes = torch.bincount(task[near], minlength=3) / 5
    torch.testing.assert_close(router.weights(x[:1])[0], votes, rtol=1e-5, atol=1e-5)
    few = knn_router(x[:2], task[:2], 3, neighbours=10)
    torch.testing.assert_close(few.weights(x[:1]).sum(), torch.tensor(1.0))


def test_the_global_batch_does_not_depend_on_the_processes() -> None:
    batches = []
    for world in (1, 2):
        parts = []
        for rank in range(world):
            data = FeatureDataModule(features(), features(), batch_size=8, seed=3)
            data.trainer = type("T", (), {"world_size": world, "global_rank": rank})()
            parts.append([y.sort().values for _, y in data.train_dataloader()])
        batches.append([torch.cat(step).sort().values for step in zip(*parts, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    data.batch_size = 7
    with pytest.raises(ValueError, match="batch_size 7 cannot be dealt out to 2 processes"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Router(4, 2, "best"), "choose mlp, linear or knn"),
        (lambda: Router(4, 2, temperature=0.0), "temperature is 0.0"),
        (lambda: RouterModule(4, 2, kind="knn"), "make it with knn_router"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
