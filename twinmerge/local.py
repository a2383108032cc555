"""Where a model lies: a folder as it is, or that of a Hub name."""

from __future__ import annotations

from pathlib import Path

from twinmerge.errors import CheckpointError


def local_folder(where: str | Path) -> Path:
    """A folder as it is, or that of a Hub name, fetched where it is not here yet.

    Raises:
        CheckpointError: when it is neither.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    if isinstance(where, Path) or where.count("/") > 1 or where.startswith((".", "/", "~")):
        raise CheckpointError(f"{where} is not a folder; give a Hugging Face or PEFT folder, or a Hub name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(where, allow_patterns=["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"])
        )
    except Exception as error:  # the transports raise what they like
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(f"{where} is no folder here and cannot be fetched from the Hub ({reason}).") from error
