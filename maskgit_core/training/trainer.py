"""The training loop in small functions, on accelerate: one step, its meters, its state.

Nothing in a step waits for the device: losses are summed where they are made and read at log intervals only. Every
random choice is a function of the seed and the sample's or step's number, so a state needs no generator's.

Shapes: B samples of this process, L tokens, M tokens in the loss, K codebook.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.checkpoint import checkpoint

from maskgit_core import rng
from maskgit_core.errors import ConfigError, WeightsError
from maskgit_core.layers import sharding
from maskgit_core.layers.dropout import per_sample, replayed
from maskgit_core.losses import token_cross_entropy, weighted_mean
from maskgit_core.refusals import check_batch, check_sharding
from maskgit_core.training.checkpoints import load_strictly, select
from maskgit_core.training.masked import MaskedBatch
from maskgit_core.training.meters import Meters, meter_sums
from maskgit_core.training.recipe import Ema, MaskedRecipe, Recipe, ema_decay_at, learning_rate, make_optimizer

#: Logits that exist at once, by default: half a gigabyte of them.
MOST_LOGITS = 2**27
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(precision: str, device: str) -> Accelerator:
    """An accelerator of its own for one training run, on `device`; a process may make several, one after the other.

    Raises:
        ConfigError: fp16 on a CPU, where gradients cannot be scaled.
    """
    if precision == "fp16" and device == "cpu":
        raise ConfigError("train.precision: fp16 trains on GPUs only and there is none here; use bf16 or fp32")
    AcceleratorState._reset_state()
    # accelerate numbers GPUs by LOCAL_RANK alone, which is wrong where a site shows each task only its own GPU
    os.environ.update(ACCELERATE_TORCH_DEVICE=device, ACCELERATE_BYPASS_DEVICE_MAP="true")
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # a process alone needs no process group, which accelerate would make on a GPU because LOCAL_RANK is there
    is_alone = int(os.environ.get("WORLD_SIZE") or 1) == 1
    local_rank = os.environ.pop("LOCAL_RANK", None) if is_alone else None
    try:
        return Accelerator(cpu=device == "cpu", mixed_precision=PRECISIONS[precision], kwargs_handlers=[buckets])
    finally:
        if local_rank is not None:
            os.environ["LOCAL_RANK"] = local_rank


def compile_for_training(block: nn.Module) -> None:
    """Compiles what `block` does in training mode, where shapes never change from step to step.

    Evaluation asks for other shapes at every call (held-out batches, positions still masked in pictures): it runs as
    written, as each new shape would be compiled again until the compiler refuses.
    """
    plain, compiled = block.forward, torch.compile(block.forward, fullgraph=True)

    def forward(*inputs: torch.Tensor | None) -> torch.Tensor:
        outputs: torch.Tensor = compiled(*inputs) if block.training else plain(*inputs)
        return outputs

    block.forward = forward


def recompute_for_training(block: nn.Module) -> None:
    """Keeps what `block` was given and computes what is inside again in the backward pass (Chen et al. 2016).

    A third more work for a fraction of the memory; the gradients are the same bits on CPUs, dropout included.
    """
    plain = block.forward

    def forward(*inputs: torch.Tensor | None) -> torch.Tensor:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*inputs)  # type: ignore[no-any-return]
        outputs: torch.Tensor = checkpoint(plain, *inputs, use_reentrant=False, context_fn=replayed)
        return outputs

    block.forward = forward


class TokenLoss(nn.Module):
    """The model with its loss in one module, so that a distributed wrapper sees a single forward.

    `accuracy` names the share of right answers that its sums hold.

    Args:
        rows: logits of so many tokens exist at once; the others' are computed again in the backward pass. None: as many
            as make `MOST_LOGITS` numbers, so that a large codebook does not decide how much memory a training needs.
    """

    accuracy = "masked_accuracy"

    def __init__(self, model: Any, label_smoothing: float, rows: int | None = None) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.rows = rows or max(1024, MOST_LOGITS // int(model.codebook_size))

    def forward(self, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, sums): this process's part of the global mean loss, and what the meters add up: (2 + 2 * buckets,)."""
        features_BLD = self.model.features(batch.inputs_BL, batch.labels_B)
        features_MD = features_BLD.flatten(0, 1).index_select(0, batch.places_M)
        if len(features_MD) <= self.rows:
            losses_M, found_M = self._of(features_MD, batch.targets_M)
        else:
            pairs = zip(features_MD.split(self.rows), batch.targets_M.split(self.rows), strict=True)
            parts = [checkpoint(self._of, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
            losses_M, found_M = (torch.cat(part) for part in zip(*parts, strict=True))
        loss = weighted_mean(losses_M, batch.weights_M, batch.total_weight)
        return loss, meter_sums(loss, found_M.float() * batch.hidden_M, batch.hidden_M, batch.buckets_M)

    def _of(self, features_MD: torch.Tensor, targets_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses_M, whether the likeliest token is the right one: bool (M,))."""
        logits_MK = self.model.logits(features_MD)
        found_M = logits_MK.detach().argmax(-1) == targets_M
        return token_cross_entropy(logits_MK, targets_M, self.label_smoothing), found_M


class Trainer:
    """A model in training.

    Args:
        model: a `Model`, on the CPU.
        recipe: what was asked.
        device: "cpu", "cuda:0", ...
        compile_blocks: compile each transformer block (`model.blocks`) by itself, as it trains.
        recompute: keep no activations inside a block; see `recompute_for_training`.
        loss: around the model, (batch) -> (loss, sums) as in `TokenLoss`; None: that, with the recipe's smoothing.
        fsdp: divide weights, gradients, moments and moving average among the processes, where there are several.
    """

    def __init__(
        self,
        model: Any,
        recipe: MaskedRecipe,
        device: str = "cpu",
        compile_blocks: bool = False,
        recompute: bool = False,
        loss: Any = None,
        fsdp: bool = False,
    ) -> None:
        self.recipe, self.step, self.on_cpu = recipe, 0, device == "cpu"
        self.accelerator = make_accelerator(recipe.precision, device)
        check_batch(recipe.batch_size, self.accelerator.num_processes)
        check_sharding(fsdp, recipe.optimizer, recipe.precision)
        self.is_sharded = fsdp and self.accelerator.num_processes > 1
        self.model = model.train()
        if compile_blocks:
            torch.compiler.reset()  # what was compiled for an earlier training counts towards the compiler's limit
            for block in model.blocks:
                compile_for_training(block)
        if recompute:
            for block in model.blocks:
                recompute_for_training(block)
        loss = loss or TokenLoss(model, recipe.label_smoothing if isinstance(recipe, Recipe) else 0.0)
        self._loss: Any = loss
        if self.is_sharded:
            sharding.shard(loss.to(self.accelerator.device), model.blocks, device)
        else:
            self._loss = self.accelerator.prepare(loss)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hidden = {id(parameter) for block in model.blocks for parameter in block.parameters()}
        names = [name for name, parameter in self.parameters.items() if id(parameter) in hidden]
        self.optimizer = self.accelerator.prepare(make_optimizer(recipe, self.parameters, names))
        self.ema = Ema(self.parameters) if recipe.ema_decay else None
        self.meters = Meters(self.accelerator, loss.accuracy)

    def train_step(self, pieces: Sequence[MaskedBatch]) -> None:
        """One optimizer step on this process's micro-batches."""
        recipe, step = self.recipe, self.step
        torch.manual_seed(rng.step_seed(recipe.seed, step, self.accelerator.process_index))
        for number, piece in enumerate(pieces):
            with (
                self._forward(number == len(pieces) - 1),
                per_sample(piece.dropout_seeds) if self.on_cpu else contextlib.nullcontext(),
            ):
                loss, sums = self._loss(piece)
                # a distributed wrapper averages gradients over processes; the parts of the loss are to be summed
                self.accelerator.backward(loss * self.accelerator.num_processes)
            self.meters.add(sums, is_new_step=number == 0)
        limit = recipe.grad_clip if recipe.grad_clip else float("inf")
        self.meters.grad_norm = sharding.whole(self.accelerator.clip_grad_norm_(list(self.parameters.values()), limit))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.parameters, ema_decay_at(recipe, step))
        self.step += 1

    @contextlib.contextmanager
    def _forward(self, exchanges: bool) -> Iterator[None]:
        """Around a forward and backward pass; only the last of a step's micro-batches exchanges gradients."""
        if self.is_sharded:
            sharding.exchange_gradients(self._loss, exchanges)
            with self.accelerator.autocast():
                yield
            return
        with contextlib.nullcontext() if exchanges else self.accelerator.no_sync(self._loss):
            yield

    # -- state -------------------------------------------------------------------------------------------------------
    def state(self, meters: Mapping[str, Any] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A copy of everything a resume needs, in CPU memory: (tensors, facts); `meters` from `Meters.totals`.

        Where the training is sharded every process must call it, and the first alone gets tensors.
        """
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.averages.items()}
        # by the parameter's place in the model: places in the optimizer depend on what weight decay acts on
        for number, parameter in enumerate(self.parameters.values()):
            values = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        copied = sharding.wholes(tensors, not self.is_sharded or self.accelerator.is_main_process)
        scaler = self.accelerator.scaler
        facts = {"step": self.step, "num_processes": self.accelerator.num_processes, "meters": meters}
        return copied, facts | ({"scaler": scaler.state_dict()} if scaler is not None else {})

    def load_state(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any], source: str) -> None:
        """Continues from a state, exactly.

        Raises:
            WeightsError: the state belongs to another model or optimizer.
        """
        load_strictly(self.model, select(tensors, "model"), source, sharding.parts)
        if self.ema is not None:
            averages = select(tensors, "ema")
            if set(averages) != set(self.ema.averages):
                raise WeightsError(f"{source}: holds no moving average of this model; set train.ema_decay=null")
            for name, value in self.ema.averages.items():
                value.copy_(sharding.part(averages[name], value))
        packed = [id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]]
        places = [packed.index(id(parameter)) for parameter in self.parameters.values()]
        states: dict[int, dict[str, torch.Tensor]] = {}
        owners = list(self.parameters.values())
        for name, value in select(tensors, "optimizer").items():
            number, _, kind = name.partition(".")
            owner = owners[int(number)]
            own = sharding.part(value, owner) if value.shape == owner.shape else value  # a count of steps is whole
            states.setdefault(places[int(number)], {})[kind] = own
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        if self.accelerator.scaler is not None and "scaler" in facts:
            self.accelerator.scaler.load_state_dict(dict(facts["scaler"]))
        self.step = int(facts["step"])
        self.meters.restore(facts.get("meters"))

    @contextlib.contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[Any]:
        """The model with the moving average (where there is one) as its weights, for as long as this lasts."""
        if self.ema is None:
            yield self.model
            return
        current, averages = list(self.parameters.values()), list(self.ema.averages.values())
        own = [parameter.detach().clone() for parameter in current]
        torch._foreach_copy_(current, averages)
        try:
            yield self.model
        finally:
            torch._foreach_copy_(current, own)

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights to publish: `model` (the moving average where there is one) and `raw`, in CPU memory.

        Where the training is sharded every process must call it, and the first alone gets tensors.
        """
        is_kept = not self.is_sharded or self.accelerator.is_main_process
        raw = sharding.wholes(self.model.state_dict(), is_kept)
        if self.ema is None:
            return {"model": raw}
        averages = sharding.wholes(self.ema.averages, is_kept)
        averaged = dict(raw)
        # a tied parameter has several names and one average
        first = {id(parameter): name for name, parameter in self.parameters.items()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False) if is_kept else ():
            if id(parameter) in first:  # a frozen one has no average
                averaged[name] = averages[first[id(parameter)]].clone()
        return {"model": averaged, "raw": raw}
