"""The error every unreadable, mismatched or tampered checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence that says which file or tensor, and what to do."""


def lacking(folder: object, name: str) -> CheckpointError:
    """An expert's folder has no tensor of a name that its base has."""
    whole = (
        ", or the encoder of one that also decodes? Then give the encoder as the base: "
        "T5EncoderModel.from_pretrained(base).save_pretrained(folder), or the class of its family."
        if name.startswith("decoder.")
        else "?"
    )
    return CheckpointError(f"{folder} lacks the tensor '{name}' of the base; is it a fine-tune of it{whole}")
