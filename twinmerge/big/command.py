"""The command `gapbridge import FILE.yml`: the merge that a mergekit configuration describes, out of core."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Import a configuration and return the exit code: 0 done, 1 failed, 2 the configuration cannot be imported."""
    parser = argparse.ArgumentParser(
        prog="gapbridge import", description="Merge the models of a mergekit configuration.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="the configuration")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the merged model; a folder that does not exist yet")
    parser.add_argument("--check", action="store_true", help="say what would be done and what it takes; write nothing")
    parser.add_argument("--device", default="cpu", help="where the tensor at hand is merged, such as cuda")
    parser.add_argument("--shard", default="5GB", metavar="SIZE", help="largest file of the merged model")
    parser.add_argument("--memory", metavar="SIZE", help="what the merge may take; 2.5 largest tensors and 400 MB")
    parser.add_argument("--force", action="store_true", help="replace the folder when it exists")
    options = parser.parse_args(argv)
    from twinmerge.big.devices import check_device
    from twinmerge.big.merge import merge_files, plan_files
    from twinmerge.big.mergekit import read_mergekit
    from twinmerge.errors import CheckpointError

    if not options.check and options.out is None:
        parser.error("say where to with --out FOLDER, or --check")
    if options.out is not None and options.out.expanduser().exists() and not options.force:
        parser.error(f"--out {options.out} exists already; give another folder, or --force to replace it")
    try:
        check_device(options.device)
        found = read_mergekit(options.file)
        plan = plan_files(**found.arguments(), shard=options.shard, memory=options.memory)
    except (CheckpointError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    given = ", ".join(f"{name} {value}" for name, value in found.options.items())
    for line in (
        f"{found.method} of {', '.join(found.experts)} over {found.base}; {given or 'no options'}",
        *(f"{found.method} {remark}" for remark in found.remarks),
        *plan.lines(),
    ):
        print(line, flush=True)
    if said := plan.refusal():
        print(said, file=sys.stderr)
        return 2
    if options.check:
        return 0
    try:
        where = merge_files(
            **found.arguments(),
            folder=options.out,
            device=options.device,
            shard=options.shard,
            memory=options.memory,
            overwrite=options.force,
        )
    except (CheckpointError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    print(f"done: {where}")
    return 0
