"""Twin folders and safetensors files that a stranger changed; see `tests.reliability.hostile`."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.reliability import corruption

CODE = "import pathlib; pathlib.Path('ran').touch()"


def _json_of(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "length-huge": struct.pack("<Q", 2**63 - 1) + b"{}",
    "length-beyond": struct.pack("<Q", 10**9) + b"{}",
    "length-zero": struct.pack("<Q", 0),
    "offset-negative": _json_of(json.dumps({"a": ENTRY | {"data_offsets": [-8, 8]}})) + bytes(8),
    "shape-negative": _json_of(json.dumps({"a": ENTRY | {"shape": [-2]}})) + bytes(8),
    "shape-huge": _json_of(json.dumps({"a": ENTRY | {"shape": [2**62, 2**62]}})) + bytes(8),
    "overlap": _json_of(json.dumps({"a": ENTRY, "b": ENTRY})) + bytes(8),
    "deep": _json_of('{"a":' * 3000 + "1" + "}" * 3000),
    "deep-list": _json_of("[" * 100000 + "]" * 100000),
    "numbers": _json_of(json.dumps({"a": ENTRY | {"shape": ["x" * 10, None]}})) + bytes(8),
    "long-number": _json_of('{"a": {"dtype": "F32", "shape": [' + "9" * 6000 + '], "data_offsets": [0, 8]}}')
    + bytes(8),
    "no-text": struct.pack("<Q", 4) + b"\xff\xfe\x00\x01",
}


def ready_twin(folder: Path) -> None:
    """Put a whole twin folder there; it is made once for all attacks, beside their working folders."""
    made = Path.cwd().parent / "ready-twin"
    if not made.is_dir():
        corruption._make_twin(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)


def with_weights(data: bytes) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        ready_twin(folder)
        (folder / "model.safetensors").write_bytes(data)

    return make


def policy_of(data: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / "policy.safetensors").write_bytes(data)


def read_unchecked(folder: Path) -> None:
    """Load a twin as the stranger wants it: without its manifest, in every mode."""
    import twinmerge

    for mode in ("shared", "routed", "expert:spam"):
        twinmerge.load(folder, mode, check=False)


# ------------------------------------------------------------------ twin folders


def twin_changes() -> dict[str, Callable[[Path], Any]]:
    def edit(name: str, **changes: Any) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            card = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(card | changes))

        return change

    def linked(name: str, target: str) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            (folder / name).unlink()
            (folder / name).symlink_to(target)

        return change

    remote = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Config"}

    def code(folder: Path) -> None:
        for name in ("modeling_evil.py", "modeling_twin.py"):
            (folder / name).write_text(f"{CODE}\nclass Evil: ...\nclass Config: ...\n")
        edit("config.json", auto_map=remote, model_type="evil")(folder)

    def code_twin(folder: Path) -> None:
        (folder / "modeling_twin.py").write_text(f"{CODE}\n")

    def template(folder: Path) -> None:
        attack = "{{ cycler.__init__.__globals__.os.system('touch ran') }}"
        text = {"chat_template": attack, "tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"x": "y.z"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(text))

    def index(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors, folder.parent / "outside-weights.safetensors")
        places = dict.fromkeys(tensors, "../outside-weights.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    deep = "[" * 100000 + "]" * 100000
    return {
        "code": code,
        "code-bundled": code_twin,
        "template": template,
        "index-traversal": index,
        "task-traversal": edit("twin.json", tasks=["../../outside"]),
        "task-absolute": edit("twin.json", tasks=["/etc"]),
        "task-kinds": edit("twin.json", tasks=[None, 3, ["x"]]),
        "heads-traversal": edit("twin.json", heads={"../../outside/x": {}}),
        "router-class": edit("twin.json", router={"class_path": "os.system"}),
        "peft-class": edit("experts/spam/adapter_config.json", peft_type="os.system", auto_mapping={"x": "os.system"}),
        "peft-regex": edit("experts/spam/adapter_config.json", alpha_pattern={"(a+)+$" * 8: 1}),
        "card-deep": lambda folder: (folder / "twin.json").write_text(deep),
        "config-deep": lambda folder: (folder / "config.json").write_text(deep),
        "link-weights": linked("model.safetensors", "/dev/zero"),
        "link-card": linked("twin.json", "/dev/null"),
        "sizes": edit("config.json", hidden_size=2**40, vocab_size=2**40),
        "sizes-negative": edit("config.json", num_hidden_layers=-1, hidden_size=-4),
    }


def changed_twin(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        ready_twin(folder)
        change(folder)

    return make
