"""A world in which a merge was run once, for all tests of the merge recipe."""

import shutil

import pytest

from tests.recipes import tiny


@pytest.fixture(scope="session")  # files of other folders may run between two of this one
def world(tmp_path_factory) -> tiny.World:
    """A world in which the default merge was run once."""
    world = tiny.World(tmp_path_factory.mktemp("merge"))
    done = world.run(world.recipe("merge"), "first")
    assert done.code == 0, done.err
    (world.folder / "first/said").write_text(done.out + done.err)
    for task in ("mood", "topic"):
        shutil.copytree(next((world.folder / "cache/experts").glob(f"{task}-*")), world.folder / "experts" / task)
    return world
