"""The front on transformers: every prompt is answered under its own mixture, whole or streamed, alone or in company."""

import asyncio
import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="the extra 'serve' is not installed")

import twinmerge  # noqa: E402
from tests.twinmerge import tiny  # noqa: E402
from tests.twinmerge.serving.conftest import listening, make_twin, texts, tokenizer  # noqa: E402
from twinmerge.serving import vllm_server  # noqa: E402
from twinmerge.serving.asking import Limits  # noqa: E402
from twinmerge.serving.command import load, main  # noqa: E402
from twinmerge.serving.decoding import Job, Sampling  # noqa: E402
from twinmerge.serving.front import Conversations, PromptRouter, create_app  # noqa: E402
from twinmerge.serving.mixtures import PARTS, name_of, parts_of  # noqa: E402
from twinmerge.serving.transformers_engine import Text, TransformersEngine  # noqa: E402
from twinmerge.serving.vllm_server import Server, free_port  # noqa: E402

PROMPTS = texts(8)
GREEDY = {"temperature": 0, "max_tokens": 8}


def serve(folder: Any, **limits: Any) -> Any:
    twin, tokenizer = load(folder, "float32", "cpu")
    engine = TransformersEngine(twin, tokenizer, 64, size=4)
    return listening(create_app(engine, twin, tokenizer, Limits(64, **limits)))


@pytest.fixture(scope="module")
def client(folder: Any) -> Any:
    with serve(folder) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def reference(folder: Any) -> Any:
    """What the twin's own generate says to a text under the weights of a name, None for the router's in 64ths."""
    twin, tokenizer = load(folder, "float32", "cpu")

    def answer(text: str, weights: Any = None) -> tuple[str, str]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if weights is None:
            parts = PromptRouter(twin).weigh([ids[0].tolist()])[0]
            weights, name = torch.tensor([parts]) / PARTS, name_of(parts)
        else:
            weights, name = torch.tensor([weights]) / PARTS, name_of(weights)
        out = twin.generate(ids, router_weights=weights, max_new_tokens=8, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True), name

    return answer


def ask(client: Any, prompt: Any, **more: Any) -> Any:
    reply = client.post("/v1/completions", json={"prompt": prompt, **GREEDY, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(client: Any, path: str, body: Any) -> list[Any]:
    with client.stream("POST", path, json=body | {"stream": True}) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_every_prompt_is_answered_under_its_own_mixture_in_any_company(client: Any, reference: Any) -> None:
    wanted = [reference(text) for text in PROMPTS]
    assert len({name for _, name in wanted}) > 4
    assert any(reference(text, (64, 0, 0))[0] != answer for text, (answer, _) in zip(PROMPTS, wanted, strict=True))
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda text: ask(client, text), PROMPTS))
    assert [(g["choices"][0]["text"], g["model"]) for g in got] == wanted
    assert {g["choices"][0]["finish_reason"] for g in got} <= {"length", "stop"}
    assert got[0]["usage"]["prompt_tokens"] == len(PROMPTS[0].split())


def test_a_stream_gives_what_one_piece_gives(client: Any, reference: Any) -> None:
    for text in PROMPTS[:3]:
        body = {"prompt": text, **GREEDY, "stream_options": {"include_usage": True}}
        events = streamed(client, "/v1/completions", body)
        said = "".join(event["choices"][0]["text"] for event in events if event["choices"])
        assert (said, events[0]["model"]) == reference(text)
        assert events[-1]["usage"]["completion_tokens"] >= len(said.split())
        assert events[-2]["choices"][0]["finish_reason"] in ("length", "stop")
        assert len(events) > 4  # piece by piece


def test_chat_goes_by_the_folder_s_template(client: Any, reference: Any) -> None:
    messages = [{"role": "system", "content": "w5"}, {"role": "user", "content": [{"type": "text", "text": "w9 w7"}]}]
    wanted = reference("w5 w9 w7 w0")
    reply = client.post("/v1/chat/completions", json={"messages": messages, **GREEDY}).json()
    assert (reply["choices"][0]["message"], reply["model"]) == ({"role": "assistant", "content": wanted[0]}, wanted[1])
    events = streamed(client, "/v1/chat/completions", {"messages": messages, **GREEDY})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == wanted[0]


def test_models_are_asked_for_by_name(client: Any, reference: Any) -> None:
    text = PROMPTS[0]
    one_hot = ask(client, text, model="expert:topic")
    assert (one_hot["choices"][0]["text"], one_hot["model"]) == reference(text, (0, 64, 0))
    assert ask(client, text, model="twin@10,50,4")["choices"][0]["text"] == reference(text, (10, 50, 4))[0]
    shared = ask(client, text, model="shared")
    assert (shared["choices"][0]["text"], shared["model"]) == (reference(text, (0, 0, 0))[0], "shared")
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert listed == ["twin", "shared", "expert:spam", "expert:topic", "expert:mood"]


def test_a_conversation_keeps_the_mixture_of_its_first_prompt(client: Any, reference: Any) -> None:
    first, second = PROMPTS[1], next(t for t in PROMPTS if reference(t)[1] != reference(PROMPTS[1])[1])
    kept = ask(client, first, conversation="c1")["model"]
    assert kept == reference(first)[1]
    again = ask(client, second, conversation="c1")
    assert again["model"] == kept
    assert again["choices"][0]["text"] == reference(second, parts_of(kept, 3))[0]
    assert ask(client, second, conversation="c2")["model"] == reference(second)[1]


def test_the_conversation_unused_for_longest_is_forgotten() -> None:
    async def first(parts: tuple[int, ...]) -> tuple[int, ...]:
        return parts

    async def failing() -> tuple[int, ...]:
        raise ValueError("no mixture")

    async def talk() -> None:
        held = Conversations(2)
        for name in ("a", "b", "a", "c"):  # b is unused for longest
            await held.mixture(name, lambda name=name: first((ord(name),)))
        assert await held.mixture("a", lambda: first((0,))) == (ord("a"),)
        assert await held.mixture("b", lambda: first((0,))) == (0,)
        with pytest.raises(ValueError, match="no mixture"):
            await held.mixture("d", failing)
        assert await held.mixture("d", lambda: first((1,))) == (1,)  # a failure is not kept

    asyncio.run(talk())


def test_stop_texts_and_sampling(client: Any, reference: Any) -> None:
    answers = {text: reference(text)[0].split() for text in PROMPTS}
    text, cut = next(
        (t, i) for t, words in answers.items() for i in range(2, len(words)) if words[i] not in " ".join(words[:i])
    )
    words = answers[text]
    choice = ask(client, text, stop=[words[cut]])["choices"][0]
    assert (choice["text"].split(), choice["finish_reason"]) == (words[:cut], "stop")
    events = streamed(client, "/v1/completions", {"prompt": text, **GREEDY, "stop": words[cut]})
    assert "".join(event["choices"][0]["text"] for event in events).split() == words[:cut]
    drawn = [ask(client, text, temperature=1.5, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ask(client, text, temperature=1.5, top_k=1)["choices"][0]["text"] == " ".join(words)


def test_draws_follow_the_distribution_and_its_cuts() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def share(**options: Any) -> list[float]:
        sampling = Sampling(seed=0, **options)
        generator = sampling.generator()
        counts = torch.zeros(4)
        for _ in range(2000):
            counts[sampling.draw(logits, generator)] += 1
        return (counts / 2000).tolist()

    assert share() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.04)
    assert share(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert share(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert share(temperature=0.5)[0] == pytest.approx(0.25 / 0.365, abs=0.04)


def test_text_is_given_out_only_when_no_token_can_change_it() -> None:
    pieces = {(1,): "a\ufffd", (1, 2): "aé", (1, 2, 3): "aéSTO", (1, 2, 3, 4): "aéSTOP it"}
    words = SimpleNamespace(decode=lambda ids, skip_special_tokens: pieces[tuple(ids)])
    text = Text(words, ["STOP"])
    assert [text.add(1), text.add(2), text.add(3), text.add(4), text.rest()] == ["a", "é", "", "", ""]
    assert text.ended
    held = Text(words, ["STOP"])
    assert [held.add(1), held.add(2), held.add(3), held.rest()] == ["a", "é", "", "STO"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (
            {"prompt": "w1", "model": "gpt-4"},
            404,
            "model 'gpt-4' is not served; ask for 'twin', 'shared', 'expert:spam'",
        ),
        ({"prompt": "w1", "model": "twin@64,0"}, 404, "64ths that sum to 64"),
        ({"prompt": ["w1", "w2"]}, 400, "send one request a prompt"),
        ({"prompt": ""}, 400, "the prompt has no tokens"),
        ({"prompt": [1, 99]}, 400, "a token beyond the 64 of the vocabulary"),
        (
            {"prompt": "w1", "max_tokens": 64},
            400,
            "the prompt has 1 tokens and 64 more are asked; the context holds 64",
        ),
        ({"prompt": "w1", "max_tokens": 0}, 400, "max_tokens is 0; give a whole number of at least 1"),
        ({"prompt": "w1", "temperature": "hot"}, 400, "temperature is 'hot'; give a number from 0 to 2"),
        ({"prompt": "w1", "top_p": 0}, 400, "top_p is 0; give a number above 0"),
        ({"prompt": "w1", "logprobs": 3}, 400, "logprobs is 3, which the transformers engine does not do"),
        ({"prompt": "w1", "n": 2}, 400, "one answer is given a request"),
        ({"prompt": "w1", "stop": [""]}, 400, "stop is one text or a list"),
        ({"prompt": "w1", "conversation": ""}, 400, "conversation is a name of 1 to 128 characters"),
        ({"prompt": "w1", "conversation": "a", "model": "shared"}, 400, "ask for model 'twin'"),
        ([1], 400, "a request is a JSON object"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(client: Any, body: Any, status: int, said: str) -> None:
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert said in error["message"]
    assert error["code"] == status


def test_what_is_no_request_is_refused(client: Any) -> None:
    assert "the body is no JSON" in client.post("/v1/completions", content=b"\xff{").json()["error"]["message"]
    assert client.post("/v1/completions", content=b" " * 5_000_000).status_code == 413
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    reply = client.post("/v1/chat/completions", json={"messages": image})
    assert "the router cannot see" in reply.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 400
    for reply, status in ((client.get("/v1/files"), 404), (client.get("/v1/completions"), 405)):
        assert reply.status_code == status
        assert "is not served" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("completions", b'{"prompt": "\\ud800"}', "the body is no JSON"),  # half a character
        ("completions", b"[" * 100_000, "the body is no JSON"),
        ("completions", b'{"prompt": "w1", "add_special_tokens": 5}', "add_special_tokens is 5; give true or false"),
        ("chat/completions", b'{"chat_template_kwargs": 5}', "chat_template_kwargs is 5; give variables"),
        ("chat/completions", b'{"chat_template_kwargs": {"tokenize": false}}', "is given tokenize; give variables"),
        ("chat/completions", b'{"chat_template_kwargs": {"chat_template": "w9"}}', "is given chat_template"),
        ("chat/completions", b'{"chat_template_kwargs": {"truncation": true, "max_length": 1}}', "max_length, trunc"),
    ],
)
def test_nothing_in_a_body_breaks_the_reading(client: Any, path: str, content: bytes, said: str) -> None:
    messages = b'{"messages": [{"role": "user", "content": "w5 w6"}], '
    content = messages + content[1:] if path.startswith("chat") else content
    reply = client.post(f"/v1/{path}", content=content)
    assert (reply.status_code, said in reply.json()["error"]["message"]) == (400, True), reply.text


def test_a_template_s_own_variables_reach_it(client: Any, reference: Any) -> None:
    messages = [{"role": "user", "content": "w5 w9"}]
    for more in ({"chat_template_kwargs": {"add_generation_prompt": False, "thinks": True}}, {"tools": None}):
        reply = client.post("/v1/chat/completions", json={"messages": messages, **GREEDY, **more}).json()
        wanted = reference("w5 w9" if "chat_template_kwargs" in more else "w5 w9 w0")
        assert (reply["choices"][0]["message"]["content"], reply["model"]) == wanted


def test_a_mixture_that_a_refusal_names_is_served(client: Any) -> None:
    said = client.post("/v1/completions", json={"prompt": "w1", "model": "spam"}).json()["error"]["message"]
    assert ask(client, "w1", model=next(word.strip("',") for word in said.split() if word.startswith("'twin@")))


def test_health(client: Any) -> None:
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (200, "ok")
    assert reply.json()["tasks"] == ["spam", "topic", "mood"]


def test_more_requests_than_the_limit_are_told_to_come_back(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = TransformersEngine._work
    monkeypatch.setattr(TransformersEngine, "_work", lambda self, jobs: time.sleep(0.3) or kept(self, jobs))
    with serve(folder, requests=2) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        with ThreadPoolExecutor(6) as pool:
            body = {"prompt": PROMPTS[0], **GREEDY}
            replies = list(pool.map(lambda _: client.post("/v1/completions", json=body), range(6)))
        assert sorted({reply.status_code for reply in replies}) == [200, 429]
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "2 requests are in work" in refused.json()["error"]["message"]
        assert ask(client, PROMPTS[0])  # and the places are free again


def test_a_client_that_leaves_frees_its_place(folder: Any) -> None:
    with serve(folder, requests=1) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        body = {"prompt": PROMPTS[0], "temperature": 1.0, "max_tokens": 50, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as reply:
            next(reply.iter_lines())
        end = time.monotonic() + 30
        while client.post("/v1/completions", json={"prompt": "w1", **GREEDY}).status_code == 429:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_failure_is_said_and_the_next_request_is_answered(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, kept = [True], TransformersEngine._work
    monkeypatch.setattr(TransformersEngine, "_work", lambda self, jobs: 1 / 0 if failing[0] else kept(self, jobs))
    with serve(folder) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        reply = client.post("/v1/completions", json={"prompt": "w1", **GREEDY})
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
        with client.stream("POST", "/v1/completions", json={"prompt": "w1", **GREEDY, "stream": True}) as stream:
            assert "broke off (ZeroDivisionError" in stream.read().decode()
        failing[0] = False
        assert ask(client, "w1")


def test_a_twin_without_a_router_serves_what_is_named(tmp_path: Any) -> None:
    place = make_twin(tmp_path / "twin", router=False)
    with serve(place) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        reply = client.post("/v1/completions", json={"prompt": "w1", **GREEDY})
        assert "this twin has no router" in reply.json()["error"]["message"]
        assert ask(client, "w1", model="expert:mood")["model"] == "twin@0,0,64"


def test_the_command_says_what_is_wrong(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--port", "no"])
    assert ended.value.code == 2
    assert "'no' is no whole number" in capsys.readouterr().err


def test_the_command_refuses_before_it_reads_the_model(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder.parent / "run"
    run.mkdir()
    (run / "merged").symlink_to(folder)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        wrong = {
            f"{folder} --port {busy.getsockname()[1]}": "cannot be listened on (Address already in use",
            f"{folder} --host 203.0.113.7": "203.0.113.7, port 8080, cannot be listened on",
            f"{folder} --engine transformers -- --gpu 1": "'--gpu 1' is meant for vLLM",
            f"{folder} --vllm-python {folder}/none": "none is no program",
            f"{run} --engine transformers --port {free_port()}": f"serve the twin in it, {run / 'merged'}",
        }
        for words, said in wrong.items():
            assert main(words.split()) == 1
            assert said in capsys.readouterr().err
    for words, said in (("--port 65536", "'65536' is no port"), ("--dtype float17", "invalid choice: 'float17'")):
        with pytest.raises(SystemExit) as ended:
            main([str(folder), *words.split()])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "given"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_vllm_serves_the_stored_number_format(
    folder: Any, asked: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[str] = []

    @contextlib.contextmanager
    def started(place: Any, *, names: int, python: str, extra: Any) -> Any:
        words.extend(extra)
        yield Server("http://127.0.0.1:1", place)

    monkeypatch.setattr(vllm_server, "running", started)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    line = [str(folder), "--port", str(free_port()), "--vllm-python", "sh", "--dtype", asked, "--", "--seed", "1"]
    assert main(line) == 0
    assert words == ["--dtype", given, "--seed", "1"]


def test_short_and_long_prompts_in_company_stay_within_learned_positions(tmp_path: Any) -> None:
    model = tiny.gpt2()
    model.generation_config.update(eos_token_id=None, pad_token_id=0)
    size, context = model.config.vocab_size, model.config.n_positions
    experts = [{k: v for k, v in e.items() if isinstance(v, tuple)} for e in tiny.differences(model)]
    twin = twinmerge.attach(model, tiny.TASKS, experts, None).eval()
    bodies = [([5] * (context - 4), 3), ([7, 8], context - 3)]  # each fits alone, and the first ends early
    with torch.no_grad():
        wanted = [
            twin.generate(torch.tensor([ids]), router_weights=torch.eye(3)[:1], max_new_tokens=n, do_sample=False)
            for ids, n in bodies
        ]
    told: list[list[int]] = [[], []]
    jobs = [
        Job(ids, (64, 0, 0), n, Sampling(temperature=0), lambda token, i=i: told[i].append(token))
        for i, (ids, n) in enumerate(bodies)
    ]
    assert size > 8
    engine = TransformersEngine(twin, tokenizer(), context)
    engine.ends = frozenset()
    engine._work(jobs)
    for ids, row, got in zip((ids for ids, _ in bodies), wanted, told, strict=True):
        assert got == [*row[0, len(ids) :].tolist(), None]
