"""A teacher behind an OpenAI-compatible server: the largest log-probabilities of every token of a text."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.functional.sparse import TopClasses
from gapbridge.arguments import shown

Json = dict[str, Any]
_LEAST = 1e-30  # probability of the rest where rounding leaves none


class Server:
    """Asks ``POST <url>/completions`` for the log-probabilities of a prompt, which it echoes, as vLLM does.

    Tokens are sent and named by id (`return_tokens_as_token_ids`): a token's text can belong to several ids.

    Args:
        url: As in http://localhost:8000/v1.
        model: Name under which the server knows the model.
        kept: Log-probabilities of a token; the server may allow fewer (vLLM's `--max-logprobs`).
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, url: str, model: str, kept: int, timeout: float = 300.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise DistillError(f"the server is {url!r}; give its address, as in http://localhost:8000/v1")
        self.url, self.model, self.kept, self.timeout = url.rstrip("/"), model, kept, timeout

    def top(self, blocks: Tensor) -> TopClasses:
        """The largest log-probabilities of what follows every token but the last.

        Args:
            blocks: Tokens, shape (blocks, length).

        Returns:
            Log-probabilities as logits, of shape (blocks, length - 1, kept), whose rest is that at temperature 1.

        Raises:
            DistillError: If the server does not answer, or not with the log-probabilities of these very tokens.
        """
        asked = {
            "model": self.model,
            "prompt": blocks.tolist(),
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": self.kept,
            "return_tokens_as_token_ids": True,
        }
        choices = self._post(asked).get("choices")
        if not isinstance(choices, list) or len(choices) != len(blocks):
            raise DistillError(
                f"{self.url} answered {len(blocks)} texts with {shown(choices)[:80]}; it must be an OpenAI-compatible "
                "server whose completions echo prompts"
            )
        ordered = sorted(choices, key=lambda choice: int(choice.get("index", 0)))
        rows = [self._row(choice, ids) for choice, ids in zip(ordered, blocks.tolist(), strict=True)]
        return TopClasses(*(torch.stack(parts) for parts in zip(*rows, strict=True)))

    def _row(self, choice: Json, ids: list[int]) -> TopClasses:
        found = choice.get("logprobs") or {}
        tops, tokens = found.get("top_logprobs") or [], found.get("tokens") or []
        if len(tops) < len(ids) or [_id(token) for token in tokens[: len(ids)]] != ids:
            raise DistillError(
                f"{self.url} does not give back the {len(ids)} tokens that it was sent, each with its log-"
                "probabilities and named by id (token_id:7); serve the model with vLLM, or one that echoes prompts so"
            )
        made_ids, made_logs = [], []
        for place, top in enumerate(tops[1 : len(ids)]):
            named = [(float(log), _id(token)) for token, log in (top or {}).items()]
            largest = sorted(named, key=lambda pair: -pair[0])[: self.kept]
            if len(largest) < self.kept or any(token is None for _, token in largest):
                raise DistillError(
                    f"{self.url} gives {len(largest)} log-probabilities named by id after token {place}, but "
                    f"teacher.keep asks for {self.kept}; keep fewer, or let the server give more (vLLM: --max-logprobs)"
                )
            made_logs.append([log for log, _ in largest])
            made_ids.append([cast(int, token) for _, token in largest])
        logs = torch.tensor(made_logs, dtype=torch.float64)
        if not bool(logs.isfinite().all()):
            raise DistillError(f"{self.url} gives log-probabilities that are not finite; see the server's log")
        rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=_LEAST).log()
        return TopClasses(torch.tensor(made_ids, dtype=torch.int32), logs.float(), rest.float())

    def _post(self, asked: Mapping[str, object]) -> Json:
        request = urllib.request.Request(  # noqa: S310 - http or https, see above
            f"{self.url}/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                return cast("Json", json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:200]
            raise DistillError(
                f"{self.url} refuses the request ({error.code}: {reason}); see the server's log"
            ) from error
        except (OSError, ValueError) as error:
            raise DistillError(
                f"{self.url} does not answer ({error}); start the server, or correct its address"
            ) from error


def _id(token: object) -> int | None:
    """The number in a token's name; None for a token that is named by its text."""
    head, _, number = str(token).partition(":")
    return int(number) if head == "token_id" and number.isdecimal() else None
