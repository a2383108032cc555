#!/usr/bin/env bash
# Builds the environment in which benchmarks/merge_vs_mergekit.py and the slow tests run mergekit, apart from the project's
# own environment so that its pins bind nobody.
#
#   bash benchmarks/mergekit_cpu/make.sh FOLDER      (about 6 GB, some minutes; run from the repository's root)
#
# The benchmark and tests/twinmerge/big/test_mergekit.py read its place from GAPBRIDGE_MERGEKIT (FOLDER).
set -euo pipefail
folder=${1:?the folder to build the environment in}
here=$(dirname "$0")
python3 -m venv "$folder"
nice "$folder/bin/pip" install --quiet -r "$here/pins.txt"
"$folder/bin/python" -c 'import importlib.metadata as m, mergekit; print("mergekit", m.version("mergekit"))'
