"""The row of WEMoE: feed-forward layers whose weights are mixed anew for every input, all else by task arithmetic.

Tang, Shen, Luo, Yin, Zhang and Tao (2024), "Merging multi-task models via weight-ensembling mixture of experts", ICML,
arXiv 2402.00433. A gate before every feed-forward block (two layers, its answers averaged over the tokens, no softmax)
says how much of every expert's change the block's weights get, all experts alike at first; the gates alone are
learned, by the entropy of the answers to unlabelled inputs. The paper takes the test inputs for that; here they are the
validation inputs. Padding does not count among the tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from recipes.errors import RunError
from recipes.merge.evaluation import with_heads
from recipes.merge.with_data import inputs_of
from twinmerge.functional.adamerging import entropy
from twinmerge.merging import set_parameters, shared_expert

if TYPE_CHECKING:
    from recipes.merge.evaluation import Scores
    from recipes.merge.rows import Judge
    from recipes.merge.schema import Recipe
    from recipes.running.folder import RunFolder

States = Mapping[str, Mapping[str, Tensor]]
INITIAL, RATE, SPREAD = 0.3, 1e-3, 0.01  # as in the authors' code
_FEED_FORWARD = re.compile(
    r"(^|[._])(mlp|ffn|feed_?forward|intermediate|densereludense|fc1|fc2|lin1|lin2)([._]|$)", re.I
)
_ATTENTION = re.compile(r"attn|attention", re.I)


class Gate(nn.Module):
    """How much of every expert's change a block gets: one weight an expert and input.

    Args:
        width: Of the block's inputs.
        experts: How many.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, experts))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(cast("Tensor", layer.weight), std=SPREAD)
            nn.init.zeros_(cast("Tensor", layer.bias))
        nn.init.constant_(cast("Tensor", self.net[2].bias), INITIAL)
        self.mask: Tensor | None = None  # of the batch, (batch, tokens)
        self.weights: Tensor | None = None  # of the batch, (batch, experts)
        self.held: Tensor | None = None  # what the batch has whatever its inputs are, as while an answer is said

    def forward(self, inputs: Tensor) -> Tensor:
        """Weights (batch, experts) from inputs (batch, ..., width), averaged over what lies between."""
        if self.held is not None:  # a search by beams has several rows an input, side by side
            return self.held.repeat_interleave(len(inputs) // len(self.held), 0)
        said = cast("Tensor", self.net(inputs.float()))
        if self.mask is not None and said.shape[:-1] == self.mask.shape:
            shares = self.mask.to(said) / self.mask.sum(1, keepdim=True).clamp(min=1).to(said)
            return (said * shares[..., None]).sum(1)
        return said.flatten(1, -2).mean(1) if said.ndim > 2 else said


class EnsembledLinear(nn.Module):
    """A linear layer of a feed-forward block, with the weights that the block's gate mixes.

    Args:
        layer: Of the base.
        gate: Of the block.
        first: Whether this layer is the first of the block, whose inputs the gate reads.
        changes: What the experts add to the weight, shape (T, m, n).
        biases: What they add to the bias, shape (T, m); None without a bias.
    """

    def __init__(self, layer: nn.Linear, gate: Gate, first: bool, changes: Tensor, biases: Tensor | None) -> None:
        super().__init__()
        self.layer, self.gate, self.first, self.changes, self.biases = layer, gate, first, changes, biases

    def forward(self, inputs: Tensor) -> Tensor:
        """The product with the mixed weights: the products of the changes, mixed."""
        if self.first:
            self.gate.weights = self.gate(inputs)
        weights = cast("Tensor", self.gate.weights).to(inputs.dtype)
        added = torch.einsum("b...n,tmn,bt->b...m", inputs, self.changes.to(inputs.dtype), weights)
        if self.biases is not None:
            bias = weights @ self.biases.to(inputs.dtype)
            added = added + bias.view(len(bias), *(1 for _ in added.shape[1:-1]), -1)
        out: Tensor = self.layer(inputs) + added
        return out


def blocks_of(model: nn.Module) -> dict[str, list[str]]:
    """The linear layers of every feed-forward block, by what stands before its name, in the order of the model.

    BERT's `output.dense` belongs to the block of the `intermediate.dense` beside it.
    """
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and not _ATTENTION.search(n)]
    matched = {name: _FEED_FORWARD.search(name) for name in linear}
    inside = {name: name[: match.start()] for name, match in matched.items() if match}
    blocks = dict.fromkeys(inside.values())
    inside |= {
        name: name.removesuffix(".output.dense") for name in linear if name.removesuffix(".output.dense") in blocks
    }
    found = {block: [name for name in linear if inside.get(name) == block] for block in blocks}
    return {block: names for block, names in found.items() if len(names) > 1}


def check_blocks(recipe: Recipe, model: nn.Module) -> None:
    """Refuse, before anything is trained, the row for a base in which no feed-forward block is known.

    Raises:
        RunError: With the base.
    """
    if "wemoe" in recipe.baselines.dynamic and not blocks_of(model):
        raise RunError(
            "baselines.dynamic: wemoe mixes the feed-forward layers of a transformer, and none is known in the base "
            f"{recipe.base}; leave it out"
        )


def ensembled(
    model: nn.Module, states: States, stored: torch.dtype = torch.float32
) -> tuple[nn.Module, list[Gate], int]:
    """The model with gates before its feed-forward blocks, the gates, and the bytes of changes and gates.

    Args:
        model: The base; left as it is.
        states: Task -> the expert's parameters.
        stored: Number format in which the changes are kept; the gates keep theirs, as a router does.
    """
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    merged = shared_expert(model, states, "task_arithmetic", scale=INITIAL)
    made, gates, size = set_parameters(copy.deepcopy(model), merged), list[Gate](), 0
    for names in blocks_of(model).values():
        width = cast("nn.Linear", model.get_submodule(names[0])).in_features
        gates.append(Gate(width, len(states)).to(next(model.parameters()).device))
        size += sum(value.nbytes for value in gates[-1].parameters())
        for place, name in enumerate(names):
            layer = cast("nn.Linear", made.get_submodule(name))
            changes, biases = (_changes(start, states, f"{name}.{kind}", stored) for kind in ("weight", "bias"))
            if changes is None:  # tied to something else: it stays merged
                continue
            with torch.no_grad():
                layer.weight.copy_(start[f"{name}.weight"])
                if biases is not None:
                    layer.bias.copy_(start[f"{name}.bias"])
            parent: Any = made.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], EnsembledLinear(layer, gates[-1], place == 0, changes, biases))
            size += stored.itemsize * (changes.numel() + (0 if biases is None else biases.numel()))
    made.requires_grad_(False)
    for gate in gates:
        gate.requires_grad_()
    return made.eval(), gates, size


def learn(gates: Sequence[Gate], answers: Callable[[int], Iterable[Tensor]], steps: int, folder: RunFolder) -> None:
    """Make the answers to unlabelled inputs sure, by the gates alone.

    Args:
        gates: Of `ensembled`.
        answers: Logits (rows, labels) of a batch of every task, by the number of the step.
        steps: Of Adam.
        folder: Run folder, for progress.
    """
    learned = [value for gate in gates for value in gate.parameters()]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    with folder.phase("gates of wemoe", steps) as progress:
        for step in range(steps):
            optimizer.zero_grad()
            for logits in answers(step):
                entropy(logits).backward(inputs=learned)  # type: ignore[no-untyped-call]
            optimizer.step()
            progress.advance()


def scored(judge: Judge, model: nn.Module, states: States, stored: torch.dtype = torch.float32) -> tuple[Scores, int]:
    """The row of WEMoE, and the bytes of what it stores beside the base.

    Raises:
        RunError: Where no task has labels, whose answers have an entropy.
    """
    options = judge.recipe.baselines
    tasks = [(index, task) for index, task in enumerate(judge.tasks) if task.labels]
    if not tasks:
        raise RunError("baselines.dynamic: wemoe learns from the entropy of labels; got only numbers to predict")
    with torch.random.fork_rng():
        torch.manual_seed(judge.recipe.seed)
        made, gates, size = ensembled(model, states, stored)
    answer = with_heads(made, judge.heads)

    def masked(batch: dict[str, Tensor], asked: list[str]) -> Tensor:
        for gate in gates:
            gate.mask = batch.get("attention_mask")
        return answer(batch, asked)

    batches = {task.name: inputs_of(judge, "validation", index, options.data_items) for index, task in tasks}

    def answers(step: int) -> Iterator[Tensor]:
        for _, task in tasks:
            batch = batches[task.name][step % len(batches[task.name])]
            count = len(next(iter(batch.values())))
            yield masked(batch, [task.name] * count)[:, : len(task.labels)]

    learn(gates, answers, options.data_steps, judge.folder)
    return judge.score("wemoe", masked), size


def _changes(start: Mapping[str, Tensor], states: States, name: str, stored: torch.dtype) -> Tensor | None:
    """What the experts add to a parameter, one by one; None where the base has none of this name."""
    if name not in start:
        return None
    base = start[name]
    return torch.stack([(state[name].to(base) - base).to(stored).to(base.dtype) for state in states.values()])
