"""What a client may ask of the front, read from an OpenAI-style body and refused in one sentence where it is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from twinmerge.serving.mixtures import PARTS, in_parts, name_of, parts_of

ROUTED, SHARED, EXPERT = "twin", "shared", "expert:"
_TEMPLATE = ("tools", "documents", "add_generation_prompt", "continue_final_message")
_VARIABLES = "chat_template_kwargs"


class RequestError(Exception):
    """A request is refused.

    Args:
        status: of HTTP.
        message: one sentence: what is wrong, the value got, what is accepted.
        parameter: of the body.
    """

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter = status, message, parameter

    def body(self) -> dict[str, Any]:
        """As OpenAI words its errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.parameter, "code": self.status}}


@dataclass(frozen=True)
class Limits:
    """What one front answers at most.

    Attributes:
        context: tokens of a prompt and its answer together.
        requests: in work at once; more are told to come back.
        body: bytes of a request.
        conversations: remembered; the one unused for longest is forgotten first.
    """

    context: int
    requests: int = 256
    body: int = 4 * 2**20
    conversations: int = 4096


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        chat: of chat completions.
        ids: tokens of the prompt.
        parts: the mixture asked for by name in 64ths; None for the router's.
        shared: the shared expert alone is asked for.
        conversation: whose mixture is kept; None for none.
        body: the body without what is meant for the front.
    """

    chat: bool
    ids: list[int]
    parts: tuple[int, ...] | None
    shared: bool
    conversation: str | None
    body: dict[str, Any]

    def served_as(self, parts: tuple[int, ...] | None) -> str:
        """The name of the model that answers, under a mixture."""
        return SHARED if self.shared or parts is None else name_of(parts)


def read(body: Any, chat: bool, tokenizer: PreTrainedTokenizerBase, tasks: list[str], limits: Limits) -> Asked:
    """Check a body and turn its prompt into tokens.

    Raises:
        RequestError: when something in it is wrong.
    """
    if not isinstance(body, dict):
        raise RequestError(400, f"the body is {type(body).__name__}, and a request is a JSON object.")
    body = dict(body)
    conversation = body.pop("conversation", None)
    if conversation is not None and not (isinstance(conversation, str) and 0 < len(conversation) <= 128):
        raise RequestError(400, "conversation is a name of 1 to 128 characters.", "conversation")
    parts, shared = _model(body.get("model", ROUTED), tasks)
    if conversation is not None and (shared or parts is not None):
        raise RequestError(400, f"a conversation keeps the router's mixture; ask for model '{ROUTED}'.", "conversation")
    if body.get("n") not in (None, 1):
        raise RequestError(400, f"n is {body['n']!r}, and one answer is given a request; send it n times.", "n")
    ids = _chat_ids(body, tokenizer) if chat else _ids(body, tokenizer)
    key = "messages" if chat else "prompt"
    if not ids:
        raise RequestError(400, "the prompt has no tokens; send some text.", key)
    size = getattr(tokenizer, "vocab_size", 0) and len(tokenizer)
    if size and not all(0 <= token < size for token in ids):
        raise RequestError(400, f"the prompt has a token beyond the {size} of the vocabulary.", key)
    longest = _whole(body, "max_completion_tokens") or _whole(body, "max_tokens")
    wanted = longest if longest is not None else 1
    if len(ids) + wanted > limits.context:
        raise RequestError(
            400,
            f"the prompt has {len(ids)} tokens and {wanted} more are asked; the context holds {limits.context}.",
            key,
        )
    return Asked(chat, ids, parts, shared, conversation, body)


def _model(name: object, tasks: list[str]) -> tuple[tuple[int, ...] | None, bool]:
    if name in (ROUTED, SHARED):
        return None, name == SHARED
    if isinstance(name, str) and name.startswith(EXPERT) and name.removeprefix(EXPERT) in tasks:
        return tuple(PARTS * (task == name.removeprefix(EXPERT)) for task in tasks), False
    parts = parts_of(name, len(tasks)) if isinstance(name, str) else None
    if parts is None:
        experts = ", ".join(f"'{EXPERT}{task}'" for task in tasks)
        raise RequestError(
            404,
            f"model {name!r} is not served; ask for '{ROUTED}', '{SHARED}', {experts}, or a mixture, "
            f"such as '{name_of(in_parts([1] * len(tasks)))}', {PARTS}ths that sum to {PARTS}.",
            "model",
        )
    return parts, False


def _whole(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(400, f"{key} is {value!r}; give a whole number of at least 1.", key)
    return value


def _ids(body: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        special = body.pop("add_special_tokens", True)
        if not isinstance(special, bool):
            raise RequestError(400, f"add_special_tokens is {special!r}; give true or false.", "add_special_tokens")
        prompt = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    if not isinstance(prompt, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        raise RequestError(400, "prompt is one text or one list of token ids; send one request a prompt.", "prompt")
    body["prompt"] = prompt  # the ids that are routed are the ids that are served
    return prompt


def _chat_ids(body: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise RequestError(400, "messages is a list of at least one {role, content}.", "messages")
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise RequestError(
                    400, "a message holds something else than text, which the router cannot see.", "messages"
                )
            message["content"] = "\n".join(str(part.get("text", "")) for part in content)
    if body.get("chat_template") is not None:
        raise RequestError(400, "the chat template is the folder's own; leave chat_template out.", "chat_template")
    if not tokenizer.chat_template:
        raise RequestError(400, "this model's tokenizer has no chat template; use /v1/completions.", "messages")
    _check_variables(body, tokenizer)
    options = {key: body[key] for key in _TEMPLATE if body.get(key) is not None} | (body.get(_VARIABLES) or {})
    options.setdefault("add_generation_prompt", True)
    try:
        ids = tokenizer.apply_chat_template(messages, return_dict=False, **options)
    except Exception as error:  # whatever a template says to messages that it does not take
        reason = " ".join(str(error).split())[:200]
        raise RequestError(400, f"the chat template refuses these messages ({reason}).", "messages") from error
    return list(ids)


def _check_variables(body: Mapping[str, object], tokenizer: PreTrainedTokenizerBase) -> None:
    """Let only the template's own variables pass; what `apply_chat_template` takes else, vLLM does not."""
    own, given = inspect.signature(tokenizer.apply_chat_template).parameters, body.get(_VARIABLES)
    wrong = sorted(given.keys() & own.keys() - set(_TEMPLATE)) if isinstance(given, dict) else []
    if wrong or not isinstance(given, dict | None):
        got = f"given {', '.join(wrong)}" if wrong else repr(given)
        raise RequestError(
            400, f'{_VARIABLES} is {got}; give variables of the template, such as {{"name": value}}.', _VARIABLES
        )
