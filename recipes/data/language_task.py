"""What a language model is asked in a task, and how its answers are judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from recipes.fields import FieldError, check_positive, check_range

__all__ = ["GENERATED", "NO_COLUMNS", "Form", "Generation", "Language", "LanguageMetric"]

Form = Literal["pairs", "chat", "text"]
LanguageMetric = Literal["exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "perplexity", "choice"]
GENERATED = ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu")  # metrics that need generated answers
NO_COLUMNS = "expected none with a merge of language models, beside whose rows no further columns are read"


@dataclass
class Generation:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        num_beams: Beams of the search; 1 is greedy, or sampling.
        do_sample: Draw tokens instead of taking the likeliest; seeded by the run.
        temperature: Of the draws.
        top_p: Draw among the likeliest tokens that hold this share.
        stop: Texts at which an answer is cut, beside the end-of-text token.
    """

    max_new_tokens: int = 32
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what no generation could use."""
        for key in ("max_new_tokens", "num_beams", "temperature"):
            check_positive(getattr(self, key), key)
        check_range(self.top_p, "top_p", low=0, high=1, low_open=True)
        if not self.do_sample and (self.temperature, self.top_p) != (1.0, 1.0):
            key = "temperature" if self.temperature != 1.0 else "top_p"
            raise FieldError(key, f"expected 1.0 without do_sample, which alone uses it, got {getattr(self, key)}")
        if "" in self.stop:
            raise FieldError("stop", "expected texts that are not empty, got ''")


@dataclass
class Language:
    """How a language model is asked and judged.

    Attributes:
        form: pairs (text columns are the prompt, the label column its completion), chat (the text column holds
            messages with role and content, put together by the tokenizer's template; the last one is the answer), or
            text (plain text; its first half is the prompt of a score).
        template: The prompt of pairs, in which {column} stands for the text of a column; empty joins the columns by a
            new line.
        between: What stands between prompt and completion; it is learned with the completion.
        answers: What is written for a label, by label; labels that are not named are written as they are.
        metric: exact_match and token_f1 (as SQuAD normalises answers), rouge1, rouge2, rougeL and bleu judge
            generated answers; perplexity (a token of the completions, lower is better) and choice (is the right
            choice the likeliest completion) need no generation.
        choices: Choices of all rows, for metric choice; empty takes every completion of the training rows.
        choices_from: Column with a row's own list of choices instead.
        generation: How answers are generated.
    """

    form: Form = "pairs"
    template: str = ""
    between: str = " "
    answers: dict[str, str] = field(default_factory=dict)
    metric: LanguageMetric = "perplexity"
    choices: list[str] = field(default_factory=list)
    choices_from: str = ""
    generation: Generation = field(default_factory=Generation)

    def __post_init__(self) -> None:
        """Refuse fields that do not belong together."""
        if self.form != "pairs":
            for key in ("template", "answers", "choices", "choices_from"):
                if getattr(self, key):
                    raise FieldError(key, f"expected none for form {self.form!r}, got {getattr(self, key)!r}")
        if self.form == "text" and self.metric != "perplexity":
            raise FieldError("metric", f"expected 'perplexity' for form 'text', got {self.metric!r}")
        if self.metric == "choice" and self.form != "pairs":
            raise FieldError("metric", f"expected another metric than 'choice' for form {self.form!r}")
        if self.metric != "choice" and (self.choices or self.choices_from):
            raise FieldError("choices", f"expected none for metric {self.metric!r}, got some")
        if self.choices and self.choices_from:
            raise FieldError("choices_from", f"expected none beside choices, got {self.choices_from!r}")
        if self.choices and len(set(self.choices)) < 2:
            raise FieldError("choices", f"expected at least two different choices, got {self.choices!r}")
        if self.metric not in GENERATED and self.generation != Generation():
            raise FieldError("generation", f"expected none for metric {self.metric!r}, which generates nothing")
