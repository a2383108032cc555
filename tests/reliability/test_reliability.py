"""The campaign of `python -m benchmarks.reliability` at counts that fit into twenty minutes."""

from collections.abc import Iterator

import pytest

from tests.reliability import hostile
from tests.reliability.campaign import Campaign

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with Campaign(tmp_path_factory.mktemp("campaign")) as made:
        assert made.servers  # started before a test looks for the processes that it leaves
        yield made


def test_broken_runs_end_as_unbroken_ones(campaign: Campaign) -> None:
    rows = campaign.broken(24)
    assert len(rows) >= 24
    assert [row for row in rows if row["unlike"] or row["lost"] or row["untidy"]] == []


def test_damage_is_told_or_harmless(campaign: Campaign) -> None:
    rows = campaign.corruptions(88, 12)
    assert len(rows) >= 98
    assert [row for row in rows if row["outcome"] not in ("refused", "harmless")] == []


def test_mutated_recipes_are_read_or_refused_in_a_sentence(campaign: Campaign) -> None:
    rows = campaign.parsed(500) + campaign.checked(50)
    assert sum(row["accepted"] + row["refused"] for row in rows) == 550
    assert [fault for row in rows for fault in row["faults"]] == []
    assert [name for row in rows for name in row.get("written", ())] == []


def test_hostile_files_run_no_code(campaign: Campaign) -> None:
    rows = campaign.hostile()
    assert len(rows) == len(hostile.attacks()) >= 30
    assert [row for row in rows if row["outcome"] not in ("refused", "harmless")] == []


def test_races_leave_whole_folders(campaign: Campaign) -> None:
    rows = campaign.races(8)
    assert [row for row in rows if row["corrupted"]] == []


def test_a_poor_machine_is_told_and_the_run_goes_on(campaign: Campaign) -> None:
    rows = campaign.environments()
    assert [row for row in rows if row["fault"]] == []
