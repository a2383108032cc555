"""People's own loaders, modules and losses, caches that keep less, images as cameras make them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from distill import DistillError, DistillLoss, DistillModule, ImageData, functional
from distill.batches import as_batch
from distill.cache import Identity, TeacherCache
from distill.cached_views import CachedViews, fill_cache
from distill.data import Images
from distill.form import Form
from distill.losses import terms_by_name
from distill.networks import ImageNetwork
from distill.terms import Outputs, Term
from distill.tokenizers import check_tokenizers
from distill.views import Augmentation, ViewDataset
from tests.distill.nets import CHANGES, CLASSES, Data, linear, trainer

KD = {"hard": {"weight": 0.3}, "kd": {"weight": 0.7, "temperature": 2.0}}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*module\\(s\\) in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*right on .* of the (validation|test) rows.*"),
]


def rows():
    made = Data().rows
    return made.images, made.labels


def fit(tmp_path, batches, terms=None, student=None, teacher=None, **options):
    made = DistillModule(
        student or linear(1), teacher or linear(2, 20), terms or KD, changes=CHANGES, classes=CLASSES, **options
    )
    train = trainer(tmp_path, max_epochs=1)
    loader = DataLoader(batches, batch_size=None)
    train.fit(made, loader, loader)
    return [p.detach() for p in made.students.parameters()], train.callback_metrics


def test_pairs_are_batches(tmp_path):
    x, y = rows()
    pairs = list(zip(x.split(16), y.split(16), strict=True))
    wanted, logged = fit(tmp_path, [{"images": a, "labels": b} for a, b in pairs])
    for other in (
        pairs,
        [list(p) for p in pairs],
        [(a, b.int()) for a, b in pairs],
        [({"images": a}, b) for a, b in pairs],
    ):
        found, said = fit(tmp_path, other)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert said["validation/accuracy"] == logged["validation/accuracy"]


def test_soft_labels_train_and_validate(tmp_path):
    x, y = rows()
    soft = 0.8 * F.one_hot(y, CLASSES) + 0.2 * F.one_hot((y + 1) % CLASSES, CLASSES)
    changes = {"hard": {"kind": "ce"}}
    hard = fit(tmp_path, list(zip(x.split(16), y.split(16), strict=True)), changes)[1]
    made = fit(tmp_path, list(zip(x.split(16), F.one_hot(y, CLASSES).float().split(16), strict=True)), changes)[1]
    for figure in ("accuracy", "loss", "agreement", "kl"):
        torch.testing.assert_close(made[f"validation/{figure}"], hard[f"validation/{figure}"])
    assert fit(tmp_path, list(zip(x.split(16), soft.split(16), strict=True)))[1]["validation/loss"].isfinite()
    with pytest.raises(DistillError, match="their rows add up to 2 to 2; give entries of at least 0 that add up to 1"):
        fit(tmp_path, [(x, 2 * soft)])
    with pytest.raises(DistillError, match=r"labels of 48 rows are class indices \(48,\) .* got shape \(48, 1\)"):
        fit(tmp_path, [(x, y[:, None])])


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"images": x}])
def test_images_without_labels(tmp_path, wrap):
    x, _ = rows()
    found, logged = fit(tmp_path, [wrap(part) for part in x.split(16)], {"kd": {}})
    assert any(not torch.equal(a, b) for a, b in zip(found, linear(1).parameters(), strict=True))
    assert {"validation/agreement", "validation/kl"} <= set(logged)
    assert "validation/accuracy" not in logged
    with pytest.raises(DistillError, match="hard needs labels, but the batch has none"):
        fit(tmp_path, [wrap(x)])


def test_a_batch_without_inputs_is_refused():
    with pytest.raises(DistillError, match="a batch of images needs the tensor 'images', got a dict of pixels"):
        as_batch({"pixels": torch.zeros(1)}, "images")
    ids = torch.tensor([[3, 4, 0]])
    found = as_batch({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0]])}, "language")
    assert found["labels"].tolist() == [[3, 4, -100]]


class Foreign(nn.Module):
    """A classifier that knows nothing of timm; what it returns is the caller's choice."""

    def __init__(self, form, seed=1):
        super().__init__()
        self.form, self.inner = form, linear(seed)

    def forward(self, images):
        return self.form(self.inner.head(self.inner.forward_features(images)))


@pytest.mark.parametrize(
    "form",
    [lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z), lambda z: (z, None)],
    ids=["mapping", "object", "tuple"],
)
def test_modules_of_any_library_teach_and_learn(tmp_path, form):
    x, y = rows()
    pairs = list(zip(x.split(16), y.split(16), strict=True))
    terms = {**KD, "rkd": {"weight": 0.1}, "cc": {}}
    torch.manual_seed(0)
    wanted, _ = fit(tmp_path, pairs, terms)
    torch.manual_seed(0)
    teacher = Foreign(form, 2)
    teacher.inner = linear(2, 20)
    found, _ = fit(tmp_path, pairs, terms, Foreign(form), teacher)
    for mine, plain in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, plain)


def test_modules_that_cannot_give_what_is_compared_are_refused(tmp_path):
    x, y = rows()
    with pytest.raises(DistillError, match="crd needs item_labels, which the networks or the data do not tell"):
        fit(tmp_path, [(x, y)], {"crd": {}})
    with pytest.raises(DistillError, match="fitnet needs student_channels, teacher_channels"):
        fit(tmp_path, [(x, y)], {"fitnet": {}})
    maps = ImageNetwork(Foreign(lambda z: z))
    with pytest.raises(DistillError, match="Foreign has no timm forward_intermediates"):
        maps({"images": x}, frozenset({"maps"}))
    with pytest.raises(DistillError, match="nor a last linear layer that gives its logits"):
        ImageNetwork(Foreign(lambda z: z[:, :2]))({"images": x}, frozenset({"features"}))
    with pytest.raises(DistillError, match=r"a model returned a Tensor of shape \(48,\), but it must be logits"):
        ImageNetwork(Foreign(lambda z: z[:, 0]))({"images": x})


class Squares(Term):
    """A loss from outside."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, student, teacher, labels):
        return self.factor.detach() * (student.logits - teacher.logits).square().mean()


def squares(student, teacher, labels):
    return (student.logits - teacher.logits).square().mean()


@pytest.mark.parametrize(
    "given",
    [Squares(2.0), Squares, squares, {"loss": squares, "weight": 2.0}, {"loss": Squares, "factor": 4.0, "weight": 0.5}],
    ids=["object", "class", "function", "weighted", "options"],
)
def test_a_loss_of_ones_own(tmp_path, given):
    s, t = (Outputs(torch.randn(3, 4, generator=torch.Generator().manual_seed(i))) for i in (1, 2))
    scale = 1.0 if given in (Squares, squares) else 2.0
    found = DistillLoss({"mine": given, "kd": {}})(s, t, None)
    torch.testing.assert_close(found["mine"], scale * squares(s, t, None))
    x, y = rows()
    made = DistillModule(linear(1), linear(2, 20), {"hard": {}, "mine": given}, changes=CHANGES, classes=CLASSES)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(made, DataLoader([(x, y)], batch_size=None))
    fitted.save_checkpoint(tmp_path / "own.ckpt")
    assert "terms" not in torch.load(tmp_path / "own.ckpt", weights_only=True)["hyper_parameters"]


def test_a_loss_of_an_installed_package(monkeypatch):
    point = SimpleNamespace(name="squares", value="other:Squares", load=lambda: Squares)
    monkeypatch.setattr(
        "distill.losses.entry_points", lambda group: [point] if group == "gapbridge.distill_losses" else []
    )
    terms_by_name.cache_clear()
    try:
        s, t = Outputs(torch.zeros(2, 3)), Outputs(torch.ones(2, 3))
        assert DistillLoss({"squares": {"factor": 3.0, "weight": 2.0}})(s, t, None)["squares"] == 6.0
        with pytest.raises(DistillError, match="squares has no option 'power'; accepted are weight, ramp, factor"):
            DistillLoss({"squares": {"power": 2}})
        with pytest.raises(DistillError, match="squares: factor: expected a number, got 'much'"):
            DistillLoss({"squares": {"factor": "much"}})
        point.name = "kd"
        terms_by_name.cache_clear()
        with pytest.raises(DistillError, match="names its loss 'kd', which is taken; rename it"):
            DistillLoss({"kd": {}})
    finally:
        terms_by_name.cache_clear()


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({"kd": {"temperature": math.inf}}, "kd: temperature: expected a finite number > 0, got inf"),
        ({"dkd": {"mixed": "argmx"}}, "dkd: mixed: expected one of 'argmax', 'partition', got 'argmx'; did you mean"),
        ({"dist": {"beta": -1.0}}, "dist: beta: expected a finite number >= 0, got -1.0"),
        ({"jsd": {"beta": 1.5}}, "jsd: beta: expected a finite number >= 0 and <= 1, got 1.5"),
        (
            {"mlkd": {"temperatures": [2.0, 0.0]}},
            "mlkd: temperatures: expected a list of at least one, each a finite number > 0",
        ),
        ({"crd": {"negatives": 0}}, "crd: negatives: expected a whole number >= 1, got 0"),
        ({"hard": {"kind": "cross"}}, "hard: kind: expected one of 'ce', 'bce', got 'cross'"),
        ({"hard": {"smoothing": 1.0}}, "hard: smoothing: expected a finite number >= 0 and < 1, got 1.0"),
        ({"mine": {"loss": "os.system"}}, "the loss of mine is 'os.system', but it must be a class, an object or"),
        ({"kd": {"weight": "much"}}, "weight of kd is much, but it must be a finite number of at least 0"),
    ],
)
def test_arguments_are_checked_at_construction(terms, sentence):
    with pytest.raises(DistillError) as caught:
        DistillLoss(terms)
    assert str(caught.value).startswith(sentence)


def test_a_term_alone_checks_its_arguments():
    with pytest.raises(DistillError, match="kd: temperature: expected a finite number > 0, got -1"):
        terms_by_name()["kd"](temperature=-1)


def test_a_loss_that_overflows_is_refused():
    with pytest.raises(DistillError, match="the loss mine is inf, from which nothing can be learnt"):
        DistillLoss({"mine": squares})(Outputs(torch.full((2, 3), 1e30)), Outputs(torch.zeros(2, 3)), None)


def views():
    draw = np.random.default_rng(1)
    images = Images(draw.integers(0, 256, (12, 10, 10, 3)), np.arange(12) % CLASSES)
    return ViewDataset(images, Augmentation(size=8), CLASSES, views=2)


def cache(folder, made, form):
    identity = Identity("t", "w", "float32", 8, (0.0,), (1.0,), made.augmentation.digest(), "d", len(made), made.seed)
    filled = TeacherCache.create(folder, identity, form, views=2)
    fill_cache(filled, made, answer)
    return TeacherCache.open(folder, identity)


def answer(images):
    return 6 * images[:, :1, ::3, ::3].flatten(1)[:, :CLASSES] - images.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", ["top", "sampled"])
def test_compact_caches_teach(tmp_path, kind):
    made = views()
    form = Form(kind=kind, kept=2 if kind == "top" else 4000, temperatures=(1.0, 2.0) if kind == "top" else (2.0,))
    data = CachedViews(made, cache(tmp_path / "cache", made, form))
    batch = next(iter(DataLoader(data, batch_size=6)))
    student = linear(1)
    module = DistillModule(ColourBlind(student), None, {"kd": {"temperature": 2.0}}, changes=CHANGES, classes=CLASSES)
    told = module.teacher(batch)
    z = student(batch["images"][:, :1]).detach()
    found = module.losses["student"](Outputs(z), told, None)["kd"]
    teacher = answer(batch["images"])
    if kind == "top":
        wanted = functional.top_kd(z, functional.top_classes(teacher, 2, (2.0,)), temperature=2.0)
        torch.testing.assert_close(found, wanted)
    else:
        soft = (teacher / 2).softmax(-1)
        wanted = functional.kd(z, teacher, temperature=2.0) - 4 * (soft * soft.log()).sum(-1).mean()
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(module, DataLoader(data, batch_size=6))
    assert fitted.global_step == 2
    with pytest.raises(
        DistillError, match=r"kd asks for the temperature 3.0, but the cache keeps classes for the temper"
    ):
        DistillLoss({"kd": {"temperature": 3.0}})(Outputs(z), told, None)
    with pytest.raises(
        DistillError, match="dist compares all of the teacher's outputs, but the cache keeps some classes"
    ):
        DistillLoss({"dist": {}})(Outputs(z), told, None)


class ColourBlind(nn.Module):
    """Looks at one channel."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images[:, :1])


def test_images_are_what_their_files_mean(tmp_path):
    from gapbridge.pictures import PictureError, eight_bits, open_image

    deep = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(open_image(str(tmp_path / "deep.png")).convert("RGB"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(eight_bits(Image.fromarray(np.array([[7, 255]], np.int32)))).tolist() == [[7, 255]]
    turned = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.asarray(open_image(str(tmp_path / "turned.png"))).tolist() == [[3, 0], [4, 1], [5, 2]]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(PictureError, match=r"the image .*bad\.jpg cannot be read .*; repair or remove it"):
        open_image(str(tmp_path / "bad.jpg"))
    with pytest.raises(PictureError, match="an image holds floating numbers"):
        eight_bits(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_folders_name_what_is_wrong(tmp_path):
    for name in ("cat", "dog", "emu"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "train" / name / f"{i}.png")
    data = ImageData(path=str(tmp_path), classes=3, changes={"image_size": 8, "batch_size": 2, "crop": "none"})
    data.setup()
    assert data.names == ["cat", "dog", "emu"]
    for file in (tmp_path / "train" / "dog").iterdir():
        file.unlink()
    with pytest.raises(DistillError, match=r"the class folders dog of .*train hold no images; put some in, or remove"):
        ImageData(path=str(tmp_path), classes=3).setup()


def bpe(merges, **more):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "bc", "abc", *more.get("extra", [])])}
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = more.get("split", pre_tokenizers.Whitespace())
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_tokenizers_are_compared_whole():
    from tokenizers import pre_tokenizers

    whole = bpe([("a", "b"), ("b", "c"), ("ab", "c")])
    check_tokenizers(whole, bpe([("a", "b"), ("b", "c"), ("ab", "c")], extra=["[PAD0]", "[PAD1]"]))
    for other, sentence in (
        (bpe([("a", "b"), ("b", "c")]), "their BPE has other merges, 3 and 2"),
        (bpe([("b", "c"), ("a", "b"), ("ab", "c")]), "their BPE has other merges"),
        (bpe([("a", "b"), ("b", "c"), ("ab", "c")], split=pre_tokenizers.WhitespaceSplit()), "another pre_tokenizer"),
    ):
        with pytest.raises(DistillError, match=sentence):
            check_tokenizers(whole, other)
