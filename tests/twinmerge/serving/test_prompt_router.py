"""Prompts that arrive together are routed as each is alone, and no padding is computed where a model allows that."""

from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

import twinmerge
from tests.twinmerge import tiny
from twinmerge.serving.command import load
from twinmerge.serving.front import PromptRouter
from twinmerge.serving.mixtures import in_parts

LENGTHS = (5, 12, 1, 7, 3, 12, 2)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 60, (length,), generator=generator).tolist() for length in LENGTHS]


def alone(twin: Any) -> list[tuple[int, ...]]:
    with torch.no_grad():
        return [in_parts(twin.route(torch.tensor([prompt]))[0].tolist()) for prompt in prompts()]


def seen(twin: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every pass of the body."""
    counts: list[int] = []
    hidden = twin._hidden
    monkeypatch.setattr(twin, "_hidden", lambda ids, *a, **k: counts.append(ids.numel()) or hidden(ids, *a, **k))
    return counts


@pytest.mark.parametrize(("row", "passes"), [(1024, [42]), (20, [18, 10, 14]), (4, [5, 12, 1, 7, 3, 12, 2])])
def test_prompts_are_laid_end_to_end(row: int, passes: list[int], folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, _ = load(folder, "float32", "cpu")
    router = PromptRouter(twin, row=row)
    counts = seen(twin, monkeypatch)
    found = router.weigh(prompts())
    assert counts == passes
    assert found == alone(twin)
    assert len(set(found)) > 3


def test_prompts_are_padded_where_a_model_mixes_them(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, _ = load(folder, "float32", "cpu")
    hidden = twin._hidden
    monkeypatch.setattr(twin, "_hidden", lambda ids, mask=None, position_ids=None: hidden(ids, mask))
    router = PromptRouter(twin)
    counts = seen(twin, monkeypatch)
    assert router.weigh(prompts()) == alone(twin)
    assert counts[0] == len(LENGTHS) * max(LENGTHS)


@pytest.mark.parametrize("base", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_models_are_routed_right(base: str, dtype: torch.dtype) -> None:
    model = getattr(tiny, base)()
    width = model.config.hidden_size
    twin = twinmerge.attach(model, tiny.TASKS, tiny.differences(model), tiny.router(width, temperature=0.1)).eval()
    router = PromptRouter(twin.to(dtype))
    found, wanted = router.weigh(prompts()), alone(twin)
    assert router.packs == (dtype == torch.float32)
    far = 0 if dtype == torch.float32 else 3  # a batch rounds otherwise
    assert all(abs(a - b) <= far for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True))


def test_a_twin_without_a_router_is_not_tried() -> None:
    model = tiny.llama()
    assert not PromptRouter(twinmerge.attach(model, tiny.TASKS, tiny.differences(model)).eval()).packs
