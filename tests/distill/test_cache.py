"""The teacher cache: the same bits as online for the same view, resumable writing, refusal of all that does not fit."""

import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from distill.cache import MANIFEST, Identity, Shard, TeacherCache, checksums
from distill.cached_views import CachedViews, fill_cache, weights_digest
from distill.errors import DistillError
from distill.form import Form
from distill.functional import LanguageHead, kd
from distill.functional.sparse import sampled_kd, top_kd
from distill.glyphs import MEAN, STD, Glyphs
from distill.views import Augmentation, ViewDataset

IMAGES, CLASSES, BATCH = 22, 99, 6
AUGMENTATION = Augmentation(size=12, auto_augment="rand-m7-mstd0.5", mixup=0.2, cutmix=1.0)


def network(seed=0, outputs=CLASSES):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, outputs)]
    return nn.Sequential(*layers).eval()


def normalised(model):
    return lambda images: model((images - MEAN) / STD)


def identity(model, **changes):
    values = {
        "teacher": "cnn",
        "weights": weights_digest(model),
        "dtype": "float32",
        "resolution": 12,
        "mean": (MEAN,),
        "std": (STD,),
        "augmentation": AUGMENTATION.digest(),
        "data": "glyphs seed 0",
        "images": IMAGES,
        "seed": 5,
    }
    return Identity(**{**values, **changes})


def dataset(**changes):
    return ViewDataset(Glyphs(IMAGES), AUGMENTATION, CLASSES, **{"seed": 5, "views": 2, **changes})


def filled(folder, form=None, model=None, shard=12, batch_size=BATCH):
    model = network() if model is None else model
    cache = TeacherCache.create(folder, identity(model), form or Form(), views=2, shard=shard)
    fill_cache(cache, dataset(), normalised(model), batch_size=batch_size)
    return TeacherCache.open(folder, identity(model))


def test_a_cache_that_was_killed_before_its_last_line_is_finished_by_the_next_filling(tmp_path):
    model = network()
    cache = filled(tmp_path, model=model)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "shards": {}}))
    for name, digest in manifest["shards"].items():
        (tmp_path / name).with_suffix(".sha256").write_text(digest)
    with pytest.raises(DistillError, match="unfinished"):
        TeacherCache.open(tmp_path, identity(model))
    again = filled(tmp_path, model=model)
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest
    assert torch.equal(again.logits(1, [0, 21]), cache.logits(1, [0, 21]))
    assert not list(tmp_path.rglob("*.sha256"))  # the manifest holds them


def test_a_cache_leaves_the_global_generator_where_it_was_whether_it_is_new_or_there(tmp_path):
    torch.manual_seed(3)
    model, before = network(), torch.get_rng_state()
    filled(tmp_path, model=model)
    assert torch.equal(torch.get_rng_state(), before)
    filled(tmp_path, model=model)
    assert torch.equal(torch.get_rng_state(), before)


def train(data, teacher, epochs=4, workers=0):
    student = network(seed=1)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    for epoch in range(epochs):
        numbers = range(epoch * IMAGES, (epoch + 1) * IMAGES)
        for batch in DataLoader(data, BATCH, sampler=numbers, drop_last=True, num_workers=workers):
            with torch.no_grad():
                logits = batch["teacher_logits"] if teacher is None else normalised(teacher)(batch["images"])
            loss = kd(normalised(student)(batch["images"]), logits, temperature=2.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student.state_dict()


def test_training_from_the_cache_is_training_online_bit_for_bit(tmp_path):
    teacher, views = network(), dataset()
    cache = filled(tmp_path)
    cached_views = CachedViews(views, cache)
    online, cached = train(views, teacher), train(cached_views, None)
    assert all(torch.equal(online[name], cached[name]) for name in online)
    workers, alone = (train(cached_views, None, epochs=1, workers=count) for count in (2, 0))
    assert all(torch.equal(workers[name], alone[name]) for name in alone)
    mixed = cached_views.__getitems__([3, IMAGES + 3, 2 * IMAGES + 3])  # a batch may hold several views of an image
    assert [item["view"] for item in mixed] == [0, 1, 0]
    for item in mixed:
        assert torch.equal(item["teacher_logits"], cache.logits(item["view"], [3])[0])


def test_an_answer_belongs_to_its_view_in_any_order(tmp_path):
    teacher, views = network(), dataset()
    cache = filled(tmp_path, shard=5)
    for view in (0, 1):
        indices = [21, 0, 7, 4, 5, 20]
        images = torch.stack([views.item(view, index)["images"] for index in indices])
        with torch.no_grad():
            torch.testing.assert_close(cache.logits(view, indices, images), normalised(teacher)(images))
    assert not torch.equal(cache.logits(0, indices), cache.logits(1, indices))


def test_other_pixels_are_refused(tmp_path):
    cache, views = filled(tmp_path), dataset()
    images = torch.stack([views.item(0, index)["images"] for index in (3, 4)])
    images[1, 0, 2, 2] += 1e-7
    cache.read(0, [3], images[:1])
    with pytest.raises(DistillError, match="other pixels of image 4 in view 0"):
        cache.read(0, [3, 4], images)
    elsewhere = dataset(seed=6)
    with pytest.raises(DistillError, match="other pixels"):
        CachedViews(elsewhere, cache)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hidden_states_and_their_head_give_the_logits(tmp_path, dtype):
    teacher = network()
    head = LanguageHead(teacher[-1].weight, teacher[-1].bias, soft_cap=30.0)
    form = Form("hidden", dtype)
    cache = TeacherCache.create(tmp_path, identity(teacher), form, views=2, head=head)
    fill_cache(cache, dataset(), normalised(teacher[:-1]), batch_size=BATCH)
    cache = TeacherCache.open(tmp_path, identity(teacher))
    images = torch.stack([dataset().item(1, index)["images"] for index in range(BATCH)])
    with torch.no_grad():
        states = normalised(teacher[:-1])(images)
        found = cache.logits(1, range(BATCH), images)
        assert torch.equal(cache.read(1, range(BATCH))["hidden"], states.to(getattr(torch, dtype)))
        if dtype == "float32":
            assert torch.equal(found, head.logits(states))
        torch.testing.assert_close(found, head.logits(states), rtol=0.02, atol=0.02)
    assert cache.head().soft_cap == 30.0
    path = tmp_path / "head.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DistillError, match=r"head.safetensors is damaged: its sha256 is .*; delete the cache"):
        TeacherCache.open(tmp_path, identity(teacher)).logits(1, range(BATCH), images)


def test_sparse_rows_give_the_sparse_losses(tmp_path):
    teacher, student = network(), network(seed=1)
    images = torch.stack([dataset().item(0, index)["images"] for index in range(IMAGES)])
    with torch.no_grad():
        dense, ours = normalised(teacher)(images), normalised(student)(images)
    exact = kd(ours, dense, temperature=2.0)
    top = filled(tmp_path / "top", Form("top", kept=98, temperatures=(1.0, 2.0)), teacher)
    loss = top_kd(ours, top.top(0, range(IMAGES)), column=1, temperature=2.0)
    torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-6)
    sampled = filled(tmp_path / "sampled", Form("sampled", kept=4000, temperatures=(2.0,)), teacher)
    rows = sampled.sampled(0, range(IMAGES))
    entropy = torch.distributions.Categorical(logits=dense / 2).entropy().mean()
    torch.testing.assert_close(sampled_kd(ours, rows, temperature=2.0) - 4 * entropy, exact, rtol=0, atol=2e-2)
    again = filled(tmp_path / "again", Form("sampled", kept=4000, temperatures=(2.0,)), teacher, shard=4, batch_size=3)
    assert torch.equal(again.sampled(0, range(IMAGES)).ids, rows.ids)


def test_writing_goes_on_where_it_was_killed(tmp_path):
    teacher = network()
    whole = filled(tmp_path / "whole", shard=5)
    folder = tmp_path / "killed"
    calls = []

    def dying(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return normalised(teacher)(images)

    cache = TeacherCache.create(folder, identity(teacher), Form(), views=2, shard=5)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(cache, dataset(), dying, batch_size=BATCH)
    with pytest.raises(DistillError, match=r"unfinished: 10 of 10 shards are missing"):
        TeacherCache.open(folder, identity(teacher))
    assert len(cache.missing()) == 7
    with pytest.raises(DistillError, match="7 shards"):
        cache.finish()
    resumed = TeacherCache.create(folder, identity(teacher), Form(), views=2, shard=5)
    fill_cache(resumed, dataset(), normalised(teacher), batch_size=BATCH)
    resumed = TeacherCache.open(folder, identity(teacher))
    assert torch.equal(resumed.logits(1, range(IMAGES)), whole.logits(1, range(IMAGES)))
    assert sorted(p.name for p in folder.rglob("*")) == sorted(p.name for p in (tmp_path / "whole").rglob("*"))


def test_several_processes_share_the_work(tmp_path):
    teacher = network()
    for number in range(3):
        cache = TeacherCache.create(tmp_path, identity(teacher), Form(), views=2, shard=5)
        missing = cache.missing()
        for shard in missing if number == 2 else missing[:3]:
            images = torch.stack([dataset().item(shard.view, i)["images"] for i in range(shard.start, shard.stop)])
            with torch.no_grad():
                cache.write(shard, {"logits": normalised(teacher)(images), "pixels": checksums(images)})
    cache.finish()
    assert TeacherCache.open(tmp_path, identity(teacher)).logits(1, [0]).shape == (1, CLASSES)


CHANGES = [
    ("weights", "0" * 64),
    ("teacher", "vit"),
    ("dtype", "bfloat16"),
    ("resolution", 16),
    ("mean", (0.5,)),
    ("std", (0.5,)),
    ("augmentation", dataclasses.replace(AUGMENTATION, flip=0.0).digest()),
    ("data", "glyphs seed 1"),
    ("images", 23),
    ("seed", 6),
]


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_a_cache_of_something_else_is_refused_with_the_difference(tmp_path, name, value):
    filled(tmp_path)
    other = identity(network(), **{name: value})
    with pytest.raises(DistillError, match=rf"of something else: {name} is .* there and .* here; write a new one"):
        TeacherCache.open(tmp_path, other)
    with pytest.raises(DistillError, match=f"{name} is"):
        TeacherCache.create(tmp_path, other, Form(), views=2, shard=12)


def test_a_teacher_that_was_trained_further_is_refused(tmp_path):
    teacher = network()
    filled(tmp_path, model=teacher)
    with torch.no_grad():
        teacher[0].bias[0] += 1e-6
    with pytest.raises(DistillError, match="weights is"):
        TeacherCache.open(tmp_path, identity(teacher))


def test_damage_and_absence_are_told(tmp_path):
    teacher = network()
    with pytest.raises(DistillError, match="no teacher cache"):
        TeacherCache.open(tmp_path / "none", identity(teacher))
    cache = filled(tmp_path / "a")
    path = tmp_path / "a" / Shard(1, 12, 22).name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cache.logits(1, [3])
    with pytest.raises(DistillError, match="is damaged: its sha256"):
        cache.logits(1, [3, 13])
    path.unlink()
    with pytest.raises(DistillError, match="its sha256 is no file"):
        cache.logits(1, [13])
    resumed = TeacherCache.create(tmp_path / "a", identity(teacher), Form(), views=2, shard=12)
    fill_cache(resumed, dataset(), normalised(teacher), batch_size=BATCH)
    assert resumed.logits(1, [13]).isfinite().all()
    manifest = tmp_path / "a" / MANIFEST
    older = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**older, "format": 0}))
    with pytest.raises(DistillError, match="format is 0 there and 1 here"):
        TeacherCache.open(tmp_path / "a", identity(teacher))
    for text in ("{", "[]"):
        manifest.write_text(text)
        with pytest.raises(DistillError, match="is damaged"):
            TeacherCache.open(tmp_path / "a", identity(teacher))


def test_a_cache_can_be_sent_to_a_process(tmp_path):
    cache = filled(tmp_path)
    before = cache.logits(0, [1])
    assert torch.equal(pickle.loads(pickle.dumps(cache)).logits(0, [1]), before)  # noqa: S301


def test_wrong_arguments_are_refused_in_a_sentence(tmp_path):
    cache = filled(tmp_path / "a")
    head = LanguageHead(torch.zeros(3, 2))
    who = identity(network())
    cases = [
        (lambda: Form("dense"), "accepted are logits, hidden, top, sampled"),
        (lambda: Form("top"), "keep at least 1 class"),
        (lambda: Form("logits", kept=3), "keep everything"),
        (lambda: Form("logits", "int8"), "accepted are float32, float16 and bfloat16"),
        (lambda: TeacherCache.create(tmp_path / "b", who, Form(), views=0), "at least 1 view"),
        (lambda: TeacherCache.create(tmp_path / "b", who, Form(), views=1, head=head), "a head exactly for 'hidden'"),
        (lambda: cache.read(2, [0]), "view 2 is not in .* views 0 to 1"),
        (lambda: cache.read(0, [22]), "image 22 is not in .* 0 to 21"),
        (lambda: cache.write(Shard(0, 0, 12), {"logits": torch.zeros(3, 2)}), "takes 12 rows"),
        (lambda: CachedViews(dataset(views=0), cache), "ever new views, the cache 2"),
        (
            lambda: fill_cache(cache, dataset(seed=1), network()),
            "22 images with seed 5, the views are of 22 with seed 1",
        ),
        (
            lambda: TeacherCache.create(tmp_path / "a", who, Form(dtype="float16"), views=2, shard=12),
            "dtype is 'float32'",
        ),
        (lambda: TeacherCache.create(tmp_path / "a", who, Form(), views=3, shard=12), "views is 2 there and 3 here"),
    ]
    for call, sentence in cases:
        with pytest.raises(DistillError, match=sentence):
            call()
