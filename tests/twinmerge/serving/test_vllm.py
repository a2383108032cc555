"""Stock vLLM serves a twin: the tokens are those of PEFT and of the twin itself."""

from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="the extra 'serve' is not installed")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from benchmarks import vllm as served  # noqa: E402
from twinmerge.serving.asking import Limits  # noqa: E402
from twinmerge.serving.command import load  # noqa: E402
from twinmerge.serving.front import create_app  # noqa: E402
from twinmerge.serving.vllm_engine import VllmEngine  # noqa: E402
from twinmerge.serving.vllm_server import running  # noqa: E402


@pytest.mark.slow  # makes an environment with vLLM where VLLM_ENVIRONMENT names none
@pytest.mark.timeout(5400)
@pytest.mark.filterwarnings("ignore")
def test_tokens_are_those_of_peft_and_of_the_twin(tmp_path: Path, monkeypatch: Any) -> None:
    python = served.environment()
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    folder = served.make_twin(tmp_path, served.small_base(tmp_path))
    loras = [f"{task}={folder / 'experts' / task}" for task in served.TASKS]
    with running(folder, names=8, python=python, extra=[*served.OPTIONS, "--lora-modules", *loras]) as server:
        twin, tokenizer = load(folder, "float32", "cpu")
        app = create_app(VllmEngine(server.address, server.cache, names=8), twin, tokenizer, Limits(served.CONTEXT))
        with served.listening(app) as front:
            figures, _ = served.compare(folder, twin, server.address, front)  # more mixtures than names are held
            assert figures == dict.fromkeys(figures, 1.0)
            with httpx.Client(base_url=server.address, timeout=600, trust_env=False) as client:
                for name in ("twin@64,0", "twin@063,1,0", "other"):
                    reply = client.post("/v1/completions", json={"model": name, "prompt": [5], "max_tokens": 1})
                    assert reply.status_code == 404
                listed = {model["id"] for model in client.get("/v1/models").json()["data"]}
            assert len([name for name in listed if name.startswith("twin@")]) <= 8
