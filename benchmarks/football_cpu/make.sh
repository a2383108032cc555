#!/usr/bin/env bash
# Builds the environment that benchmarks/football.py and the slow test play Google Football in: its engine, compiled from
# source, beside what a csp recipe needs, apart from the project's own environment because the engine wants gym 0.25 and
# numpy below 2.
#
#   bash benchmarks/football_cpu/make.sh FOLDER      (about 2 GB, some seven minutes of one core; run from the repository's root)
#
# The engine is C++ and needs, on Debian or Ubuntu,
#
#   apt-get install cmake build-essential libgl1-mesa-dev libegl1 libsdl2-dev libsdl2-image-dev libsdl2-ttf-dev \
#       libsdl2-gfx-dev libboost-all-dev
#
# It and gym are source distributions from before setuptools 66, so they are made into wheels with an older one, and its
# build calls a bare python3, which must be that of FOLDER. Wheels that are in FOLDER/wheels already are taken.
set -euo pipefail
folder=${1:?the folder to build the environment in}
here=$(dirname "$0")
for program in cmake make c++; do
    command -v "$program" >/dev/null || { echo "$program is not installed; the top of $0 names what the engine needs"; exit 1; }
done
for header in GL/gl.h EGL/egl.h SDL2/SDL.h SDL2/SDL_image.h SDL2/SDL_ttf.h SDL2/SDL2_gfxPrimitives.h boost/python.hpp; do
    printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$header" | c++ -E -x c++ - >/dev/null 2>&1 ||
        { echo "the header $header is not installed; the top of $0 names what the engine needs"; exit 1; }
done
python3 -m venv "$folder"
PATH="$(cd "$folder" && pwd)/bin:$PATH"
if ! ls "$folder"/wheels/gfootball-*.whl >/dev/null 2>&1; then
    pip install --quiet "setuptools<66" wheel psutil "numpy<2"
    mkdir -p "$folder/wheels"
    python -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)' pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$folder/wheels" \
        gym==0.25.2 gfootball==2.10.2 >"$folder/wheels/cpu_seconds"
fi
pip install --quiet -r "$here/pins.txt"
pip install --quiet --no-deps "$folder"/wheels/*.whl
pip install --quiet --no-deps -e "$here/../.."
python -c 'import gfootball.env, torch; print("gfootball 2.10.2, torch", torch.__version__)'
