"""Where a model lies: a folder as it is, or that of a Hub name."""

from __future__ import annotations

from pathlib import Path

from twinmerge.errors import CheckpointError


def local_folder(where: str | Path) -> Path:
    """A folder as it is, or that of a Hub name, fetched where it is not here yet.

    Raises:
        CheckpointError: when it is neither, or as `snapshot_of`.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        return snapshot_of(path)
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


def snapshot_of(folder: Path) -> Path:
    """The snapshot that a model's folder in the cache of the Hub (`models--...`) holds; any other folder as it is.

    Raises:
        CheckpointError: for a cache's folder with several snapshots or none.
    """
    if not (folder / "snapshots").is_dir() or any(folder.glob("*.json")):
        return folder
    held = sorted(found for found in (folder / "snapshots").iterdir() if found.is_dir())
    if len(held) != 1:
        raise CheckpointError(
            f"{folder} is a model's folder in the cache of the Hub with {len(held)} snapshots; "
            f"give {' or '.join(map(str, held)) or 'a folder that holds the model'}."
        )
    return held[0]
