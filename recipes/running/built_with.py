"""What code a result was made with: a digest of this project's files and of the versions of what computes."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "lightning", "transformers", "timm", "torchmetrics", "scikit-learn")


@cache
def built_with(*packages: str, without: str = "none") -> str:
    """Digest of every Python file of some packages, with the versions of the libraries that compute.

    Args:
        packages: Names of top-level packages; none of them is imported.
        without: A package within them whose files do not count, such as recipes.compose.
    """
    found = hashlib.sha256()
    for library in LIBRARIES:
        try:
            found.update(f"{library} {version(library)}\n".encode())
        except PackageNotFoundError:
            found.update(f"{library} is not installed\n".encode())
    for package in packages:
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec.submodule_search_locations if spec else None) or []):
            for file in sorted(root.rglob("*.py")):
                name, content = f"{package}/{file.relative_to(root).as_posix()}", file.read_bytes()
                if name.startswith(f"{without.replace('.', '/')}/"):
                    continue
                found.update(f"{name} {len(content)}\n".encode())
                found.update(content)
    return found.hexdigest()
