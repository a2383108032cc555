"""What experts, twin and students answer to every test input, in one table that later stages read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipes.compose.schema import Recipe
from recipes.compose.stages import RESULT, TABLE, Stage, alone, settled
from recipes.errors import RunError
from recipes.running.files import whole_file, write_json
from recipes.running.inputs import changed
from recipes.running.seals import stamp

if TYPE_CHECKING:
    from recipes.running.folder import RunFolder


def answer(recipe: Recipe, stage: Stage, merge: Stage, students: Sequence[Stage], folder: RunFolder) -> bool:
    """Write the table of all answers, unless the cache has it; true where it does.

    Args:
        recipe: The recipe.
        stage: The table's stage.
        merge: The finished merge.
        students: The finished students.
        folder: Run folder of the composition, for what is said.
    """
    from recipes.compose.story import student_of
    from recipes.explain.merged import read_merged

    with alone(stage.folder, folder):
        if settled(stage, folder):
            folder.say(f"stage {stage.name}: cached in {stage.folder}")
            return True
        folder.say(f"stage {stage.name}: begins in {stage.folder}")
        places = {student.name: student_of(student) for student in students}
        made = read_merged(merge.folder, folder.say, places, examples=True, columns=recipe.explain.columns)
        if fault := changed(stage.reads):
            raise RunError(f"stage {stage.name}: {fault} while it was read; start the run again")
        with whole_file(stage.folder / TABLE) as file:
            made.to_parquet(file, index=False)
        write_json(stage.folder / RESULT, {"rows": len(made), "columns": list(made.columns)})
        stamp(stage.folder)
    return False
