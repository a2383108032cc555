"""Whether a device that a merge is to use is there."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Refuse a device that torch does not know, or that is not here.

    Raises:
        ValueError: In one sentence.

    >>> check_device("cpu")
    >>> check_device("gpu")
    Traceback (most recent call last):
    ValueError: the device is 'gpu'; give cpu, or cuda where there is an NVIDIA or AMD GPU.
    """
    accepted = "give cpu, or cuda where there is an NVIDIA or AMD GPU."
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"the device is {device!r}; {accepted}") from error
    if found.type == "meta":
        raise ValueError(f"the device is {device!r}, which holds no numbers; {accepted}")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"the device is {device!r} and torch finds no CUDA device on this machine; give cpu.")
        if (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"the device is {device!r} and there are {torch.cuda.device_count()}; give one of them.")
