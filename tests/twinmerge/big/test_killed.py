"""A merge of files that is killed (SIGKILL) at any moment ends in the same bytes when it is called again."""

import json

import pytest
from safetensors.torch import load_file, save_file

from tests.twinmerge.big.small import config, write_family
from twinmerge.big.writing import Journal, Shard, Writer, header_of

# Every child is killed before one of the calls that change files, so that it ends where no handler runs.
KILLS = """
import hashlib, json, os, signal, sys, traceback
from pathlib import Path
from twinmerge.functional import blocks

root, every, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
blocks.BLOCK = 1500
base, experts = root / "base", {f"e{i}": root / f"expert{i}" for i in range(2)}
if name == "merged":
    from twinmerge.big.merge import merge_files

    def job(out):
        merge_files(base, experts, out, method="ties", shard="40KB", vocabulary="pad")
else:
    from twinmerge.big.twin import twin_files

    def job(out):
        twin_files(base, experts, out, rank=2, shard="40KB", vocabulary="pad")

CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile"}
count, limit = 0, 0

def tick():
    global count
    count += 1
    if count == limit:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(lambda event, given: tick() if limit and event in CALLS and str(root) in str(given[0]) else None)
pwrite = os.pwrite

def write(*given):
    tick()
    return pwrite(*given)

os.pwrite = write

def digest(folder):
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in sorted(folder.rglob("*")) if f.is_file()}

def forked(out, at):
    global limit, count
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    limit, count = at, 0
    try:
        job(out)
        os._exit(0)
    except FileExistsError:
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

whole = root / "whole" / "model"
job(whole)  # which imports all that the children need
expected, at, kills = digest(whole), 1, 0
while True:
    out = root / str(at) / "model"
    status = forked(out, at)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    forked(out, at + every // 2)  # and once more while it goes on
    assert forked(out, 10**9) in (0, 512), at  # one that is whole already is not written over
    found = digest(out)
    assert found == expected, (at, [f for f in {*found, *expected} if found.get(f) != expected.get(f)])
    assert {p.name for p in out.parent.iterdir()} <= {"model", ".model.lock"}, list(out.parent.iterdir())
    at, kills = at + every, kills + 1
print(kills, flush=True)
"""


@pytest.mark.parametrize(("what", "every"), [("merged", 8), pytest.param("twin", 7, marks=pytest.mark.slow)])
def test_a_merge_killed_at_any_call_ends_in_the_same_bytes(what, every, tmp_path, nursery):
    _, experts = write_family(tmp_path, 2, vocab=64, files=2)
    for folder, rows in zip(experts.values(), (70, 60), strict=True):  # embeddings are written anew
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
                tensors[name] = tensors[name].repeat(2, 1)[:rows].clone()
            save_file(tensors, file, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(vocab=rows)))
    [done] = nursery.run(("-c", KILLS, tmp_path, every, what), folder=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 10


def test_a_file_without_its_header_gets_it(tmp_path):
    shard = Shard("model.safetensors", {"w": ("F32", (3, 4))})
    (tmp_path / shard.name).touch()  # all that a killed process left
    Writer(tmp_path, [shard]).close()
    start = header_of(shard)
    assert (tmp_path / shard.name).read_bytes() == start + bytes(48)


def test_a_line_that_was_cut_off_is_not_gone_on_with(tmp_path):
    file = tmp_path / ".journal"
    file.write_text("task\ntensor a\nfactors e0 w 0.1")
    journal = Journal(file)
    journal.note("factors e0 v 0.5")
    assert journal.done == {"tensor a", "factors e0 v 0.5"}
    assert Journal(file).done == journal.done
