"""The command `gapbridge`: `gapbridge FILE.yaml` is `python -m recipes.run`, `gapbridge serve FOLDER` serves a twin.

`gapbridge import FILE.yml` merges the models of a mergekit configuration. `gapbridge play RUN --against OPPONENT` plays
the policies of a csp run against a new opponent.

`recipes` is a common name: torchtune installs a package of this name, and a project may have a folder of it. The
command therefore puts the folder that it was installed in first on the path before it imports the front.
"""

import sys
from pathlib import Path


def main() -> int:
    """Run the front on the command line's words and return its exit code, see `recipes.run.main`."""
    home = str(Path(__file__).resolve().parents[1])
    sys.path[:] = [home, *(entry for entry in sys.path if entry != home)]
    if sys.argv[1:2] == ["serve"]:
        from twinmerge.serving.command import main as serve

        return serve(sys.argv[2:])
    if sys.argv[1:2] == ["import"]:
        from twinmerge.big.command import main as merge

        return merge(sys.argv[2:])
    if sys.argv[1:2] == ["play"]:
        from recipes.csp.play import main as play

        return play(sys.argv[2:])
    from recipes.run import abandoned, main as run

    return abandoned(run())


if __name__ == "__main__":
    sys.exit(main())
