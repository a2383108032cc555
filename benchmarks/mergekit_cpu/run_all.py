"""Runs in mergekit's own environment: merges every configuration of a folder, `NAME.yml` into the folder `NAME`."""

import sys
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

torch.set_num_threads(1)
for file in sorted(Path(sys.argv[1]).glob("*.yml")):
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(config, out_path=str(file.with_suffix("")), options=options)
