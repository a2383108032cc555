"""Language teachers that answer once: caches of samples and of the largest logits, a server, and another tokenizer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from distill import DistillError, DistillModule, LanguageNetwork
from distill.answered import sampled_by, served_by, top_of, two_tokenizers
from distill.form import Form
from distill.functional import kd, top_classes, top_kd, uld
from distill.networks import Frozen
from distill.sampling import continued
from distill.served import Server
from distill.tokens import Blocks
from tests.distill.nets import CHANGES, trainer
from tests.distill.test_sampling import IDS, LENGTH, llama, weights, words

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]
PLAIN = CHANGES | {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5}


def fit(folder, made, blocks):
    loader = DataLoader(blocks, batch_size=len(blocks))
    trainer(folder, max_epochs=1, limit_val_batches=0).fit(made, loader)
    return weights(made, "a")


def test_the_teacher_speaks_once(tmp_path):
    teacher, ids = Frozen(LanguageNetwork(llama(16))), words(70)
    said = {"name": "t", "prompt": 4, "temperature": 1.0, "seed": 3, "common": IDS}
    field = sampled_by(teacher, ids, tmp_path / "c", **said)
    rows = torch.stack([field(i, ids[i])["teacher_samples"] for i in range(70)])
    assert torch.equal(rows[:, :4], ids[:, :4])
    assert not torch.equal(rows, ids)
    (tmp_path / "c/view-00000/000000064.safetensors").unlink()  # an interrupted filling goes on alike
    manifest = json.loads((tmp_path / "c/MANIFEST.json").read_text())
    manifest["shards"].pop("view-00000/000000064.safetensors")
    (tmp_path / "c/MANIFEST.json").write_text(json.dumps(manifest))
    again = sampled_by(teacher, ids, tmp_path / "c", **said)
    assert torch.equal(rows[66], again(66, ids[66])["teacher_samples"])
    greedy = sampled_by(teacher, ids[:2], tmp_path / "g", **{**said, "temperature": 0.0})
    wanted = continued(teacher.network, list(ids[:2, :4]), [8, 8], 0.0, 9, IDS)
    assert torch.equal(greedy(1, ids[1])["teacher_samples"][4:], wanted[1])
    with pytest.raises(
        DistillError, match="augmentation is 'goes on from 4 tokens at temperature 1 with ids below 30'"
    ):
        sampled_by(teacher, ids, tmp_path / "c", **{**said, "temperature": 0.5})
    with pytest.raises(DistillError, match="weights is"):
        sampled_by(Frozen(LanguageNetwork(llama(16, 1))), ids, tmp_path / "c", **said)
    with pytest.raises(DistillError, match="the teacher saw other pixels of image 5"):
        field(5, ids[6])


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_cache_of_the_largest_logits_teaches(tmp_path, chunk):
    """All ids but one with the rest as a ghost are the whole distribution; fewer are `top_kd` of the same rows."""
    ids, teacher = words(6), llama(16)
    frozen = Frozen(LanguageNetwork(teacher))

    def learned(kept, **options):
        made = DistillModule(
            {"a": llama(8, 3)}, None if kept else teacher, {"a": {"kd": {"temperature": 2.0}}}, task="language",
            changes=PLAIN, chunk=chunk, log_gradients_every=options.get("every", 0),
        )  # fmt: skip
        form = Form("top", kept=kept, temperatures=(1.0, 2.0)) if kept else None
        answers = [top_of(frozen, ids, tmp_path / f"{kept}", name="t", form=form, seed=0, common=IDS)] if form else []
        return fit(tmp_path, made, Blocks(ids, answers))

    torch.testing.assert_close(learned(IDS - 1), learned(0), rtol=1e-4, atol=1e-5)
    some = learned(3)
    plain = llama(8, 3)
    z, t = (model(input_ids=ids).logits[:, :-1].flatten(0, 1) for model in (plain, teacher.eval()))
    top_kd(z, top_classes(t.detach(), 3, (2.0,)), temperature=2.0).backward()
    wanted = torch.cat([(w - 0.5 * w.grad).detach().flatten() for w in plain.parameters()])
    torch.testing.assert_close(some, wanted, rtol=1e-4, atol=1e-5)


def test_a_cache_of_other_texts_or_losses_is_refused(tmp_path):
    ids, frozen = words(6), Frozen(LanguageNetwork(llama(16)))
    form = Form("top", kept=3)
    answers = [top_of(frozen, ids, tmp_path / "c", name="t", form=form, seed=0, common=IDS)]
    for terms, sentence in (
        ({"jsd": {}}, "jsd compares all of the teacher's outputs, but the cache keeps some classes"),
        ({"kd": {"temperature": 3.0}}, "kd asks for the temperature 3.0, but the cache keeps classes for the temper"),
    ):
        made = DistillModule({"a": llama(8)}, None, {"a": terms}, task="language", changes=PLAIN)
        with pytest.raises(DistillError, match=sentence):
            fit(tmp_path, made, Blocks(ids, answers))
    with pytest.raises(DistillError, match="data is"):
        top_of(frozen, words(6, seed=1), tmp_path / "c", name="t", form=form, seed=0, common=IDS)
    with pytest.raises(DistillError, match="the cache keeps 30 of 30 token ids"):
        top_of(frozen, ids, tmp_path / "d", name="t", form=Form("top", kept=IDS), seed=0, common=IDS)


class Fake(BaseHTTPRequestHandler):
    """A completions server as vLLM's: echoes prompts of token ids with the log-probabilities of a local model."""

    model = None
    fault = ""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, asked["model"], asked["echo"]) == ("/v1/completions", "big", True)
        choices = []
        for index, ids in enumerate(asked["prompt"]):
            with torch.no_grad():
                logs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            tops = [None]
            for row, token in zip(logs[:-1], ids[1:], strict=True):
                values, found = row.topk(asked["logprobs"])
                top = {f"token_id:{i}": float(v) for i, v in zip(found.tolist(), values, strict=True)}
                tops.append({**top, f"token_id:{token}": float(row[token])})  # vLLM gives the text's own token too
            tokens = [f"token_id:{i}" for i in ids]
            if self.fault == "text":
                tokens = ["the" for _ in ids]
            if self.fault == "few":
                tops = [None, *({k: top[k] for k in list(top)[:1]} for top in tops[1:])]
            choices.append(
                {"index": index, "logprobs": {"tokens": [*tokens, "token_id:1"], "top_logprobs": [*tops, {}]}}
            )
        body = json.dumps({"choices": choices[::-1]}).encode()
        self.send_response(500 if self.fault == "down" else 200)
        self.end_headers()
        self.wfile.write(b"out of memory" if self.fault == "down" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Its address; the teacher behind it is llama(16)."""
    monkeypatch.setattr(Fake, "model", llama(16).eval())
    monkeypatch.setattr(Fake, "fault", "")
    made = HTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/v1"
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_server_teaches_as_the_model_behind_it(tmp_path, server, monkeypatch):
    ids = words(6)
    asked = Server(server, "big", 4)
    found = asked.top(ids)
    with torch.no_grad():
        logs = Fake.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    wanted = top_classes(logs.flatten(0, 1), 4)
    for mine, known in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.flatten(0, 1), known, rtol=1e-4, atol=1e-5)
    field = served_by(asked.top, ids, tmp_path / "s", name="big", kept=4, seed=0, common=IDS)
    monkeypatch.setattr(Fake, "fault", "down")  # all was asked already
    made = DistillModule({"a": llama(8, 3)}, None, {"a": {"kd": {}}}, task="language", changes=PLAIN, chunk=5)
    learned = fit(tmp_path, made, Blocks(ids, [field]))
    plain = llama(8, 3)
    z = plain(input_ids=ids).logits[:, :-1].flatten(0, 1)
    top_kd(z, wanted).backward()
    torch.testing.assert_close(
        learned, torch.cat([(w - 0.5 * w.grad).detach().flatten() for w in plain.parameters()]), rtol=1e-4, atol=1e-5
    )
    assert float(top_kd(z, wanted).detach()) < float(kd(z, logs.flatten(0, 1)).detach())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("text", "does not give back the 12 tokens that it was sent"),
        ("few", "but teacher.keep asks for 4; keep fewer, or let the server give more"),
        ("down", r"refuses the request \(500: out of memory\)"),
    ],
)
def test_a_server_that_cannot_teach_is_told(server, monkeypatch, fault, sentence):
    monkeypatch.setattr(Fake, "fault", fault)
    with pytest.raises(DistillError, match=sentence):
        Server(server, "big", 4).top(words(2))


def test_no_server_and_a_stranger_are_told(tmp_path, server):
    with pytest.raises(DistillError, match="does not answer"):
        Server("http://127.0.0.1:9/v1", "big", 4, timeout=2).top(words(1))
    with pytest.raises(DistillError, match="the server is 'localhost'; give its address"):
        Server("localhost", "big", 4)
    with pytest.raises(DistillError, match="but a student knows the ids 0 to 9; serve a model of"):
        served_by(Server(server, "big", 4).top, words(2), tmp_path / "s", name="big", kept=4, seed=0, common=10)


def tokenizer(pieces):
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, _merges(pieces)))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def _merges(pieces):
    return [(piece[:-1], piece[-1]) for piece in pieces if len(piece) > 1]


def test_two_tokenizers_meet_where_both_have_read_the_same(tmp_path):
    letters = [" ", "a", "b", "c"]
    ours, theirs = tokenizer([*letters, "ab"]), tokenizer([*letters, "bc", "ab", "abc"])
    text = "abc ab c bc" * 3
    ids = torch.tensor(ours(text)["input_ids"])[None]
    found = two_tokenizers(theirs, ours)(0, ids[0])
    read = found["teacher_input_ids"][found["teacher_attention_mask"].bool()]
    assert theirs.decode(read.tolist(), clean_up_tokenization_spaces=False) == text
    mine = [ours.decode(ids[0, :i].tolist()) for i in found["paired"].nonzero().squeeze(-1).tolist()]
    other = [theirs.decode(read[:i].tolist()) for i in (found["teacher_labels"] != -100).nonzero().squeeze(-1).tolist()]
    assert mine == other
    assert 5 < len(mine) < ids.shape[1] - 1
    blocks = Blocks(ids, [two_tokenizers(theirs, ours)])
    student, teacher = llama(8, 3, ids=len(ours)), llama(16, ids=len(theirs))
    for chunk in (0, 4):
        torch.manual_seed(0)
        terms = {"hard": {} if chunk else {"kind": "ce"}, "uld": {"weight": 1.5}}
        made = DistillModule(
            {"a": llama(8, 3, ids=len(ours))}, teacher, {"a": terms},
            task="language", changes=PLAIN, chunk=chunk,
        )  # fmt: skip
        learned = fit(tmp_path, made, blocks)
        student = llama(8, 3, ids=len(ours))
        z = student(input_ids=ids).logits[0]
        with torch.no_grad():
            t = teacher.eval()(input_ids=read[None]).logits[0]
        places = found["paired"].nonzero().squeeze(-1) - 1
        others = (found["teacher_labels"] != -100).nonzero().squeeze(-1) - 1
        hard = torch.nn.functional.cross_entropy(z[:-1], ids[0, 1:])
        share = len(places) / (ids.shape[1] - 1)  # of the tokens; the others count nothing
        (hard + 1.5 * share * uld(z[places], t[others])).backward()
        wanted = torch.cat([(w - 0.5 * w.grad).detach().flatten() for w in student.parameters()])
        torch.testing.assert_close(learned, wanted, rtol=1e-4, atol=1e-5)
    validated = DistillModule({"a": student}, teacher, {"a": {"hard": {}, "uld": {}}}, task="language", changes=PLAIN)
    scores = trainer(tmp_path).test(validated, DataLoader(Blocks(ids), batch_size=1), verbose=False)[0]
    assert "test/loss" in scores
    assert "test/kl" not in scores


def test_uld_beside_another_loss_of_the_teacher_is_refused():
    with pytest.raises(DistillError, match="a learns by uld from a teacher that reads tokens of its own, and b by kd"):
        DistillModule(
            {"a": llama(8), "b": llama(8)},
            llama(16),
            {"a": {"uld": {}}, "b": {"kd": {}}},
            task="language",
            changes=PLAIN,
        )
    assert LENGTH == 12
