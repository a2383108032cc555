"""Programs that are forked from a process with torch in it are processes of their own in all else."""

import os
import signal
from pathlib import Path

TOLD = "import os, sys; print(os.getcwd(), os.environ['TOLD'], *sys.argv, 'torch' in sys.modules); sys.exit(3)"


def test_a_program_has_its_own_words_folder_environment_output_and_end(nursery, tmp_path):
    [done] = nursery.run(("-c", TOLD, 1, "two"), folder=tmp_path, TOLD="this")
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{tmp_path} this -c 1 two True\n", "")
    [failed] = nursery.run(("-c", "import rl; rl.nothing_at_all"), folder=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("AttributeError")
    [killed] = nursery.run(("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), folder=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    [module] = nursery.run(("-m", "recipes.run", "--list"), folder=tmp_path)
    assert (module.returncode, "merge.yaml" in module.stdout) == (0, True)
    assert "TOLD" not in os.environ
    assert Path.cwd() != tmp_path


def test_programs_run_at_the_same_time_and_one_that_does_not_end_is_killed(nursery, tmp_path):
    wait = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\nprint('met')"
    met, alone = nursery.run(
        ("-c", wait + "\npathlib.Path('b').touch()", "a"),
        ("-c", "import pathlib; pathlib.Path('a').touch()\n" + wait, "b"),
        folder=tmp_path,
    )
    assert (met.stdout, alone.stdout) == ("met\n", "met\n")
    [late] = nursery.run(("-c", wait, "never"), folder=tmp_path, timeout=0.3)
    assert late.returncode == -signal.SIGKILL
    ranks = nursery.ranks("-c", "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])", folder=tmp_path)
    assert [rank.stdout for rank in ranks] == ["0 2\n", "1 2\n"]


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(nursery, tmp_path):
    nursery._process.stdin.write('{"tasks": [], "timeout": 1, "number": 0}\n')
    [done] = nursery.run(("-c", "raise SystemExit(7)"), folder=tmp_path)
    assert done.returncode == 7
