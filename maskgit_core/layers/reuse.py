"""Keys and values kept between reveal steps (ReCAP, Liu et al. 2025, https://arxiv.org/abs/2505.19089).

Few tokens change from one step to the next, and what the others tell their neighbours hardly does. Of every few
evaluations one is full and keeps the keys and values of all attention layers. The others are partial: only positions
that are asked for, and those whose token has changed since, go through the network; they attend to the kept keys and
values of all others (the paper's local evaluation). No weights change, nothing is trained.

Works with any model whose `blocks` take the rows first and the wanted positions last and attend by
`maskgit_core.layers.dropout.attention`.

Shapes: C rows of a batch (samples, or samples with and without their class), L tokens, N cells (L / splits), A active
cells, M positions asked for, K codebook, H heads, d columns of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from maskgit_core.errors import ConfigError

_current: ContextVar["ContextReuse | None"] = ContextVar("reuse", default=None)
#: (tokens (C, L), labels (C,), wanted (C, L)) -> logits (M, K)
Pass = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor]


def exchanged(k_CHLd: torch.Tensor, v_CHLd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values to attend to: kept for later if full, put among the kept ones if partial."""
    current = None if torch.compiler.is_compiling() else _current.get()
    return (k_CHLd, v_CHLd) if current is None else current.exchange(k_CHLd, v_CHLd)


def present_rows() -> torch.Tensor | None:
    """int64 (C, A), which rows of the whole sequence a partial evaluation computes; None in a full one."""
    current = None if torch.compiler.is_compiling() else _current.get()
    return None if current is None else current.rows_CA


class ContextReuse:
    """Evaluations of one model on one batch, every `full_every`-th of them full.

    Args:
        model: a `Model` in eval mode.
        full_every: from 2; one full evaluation, then so many less one partial ones.
        min_rows: fewest rows of a matrix product; fewer are filled up with copies, so that no batch size shows.
    """

    def __init__(self, model: Any, full_every: int, min_rows: int) -> None:
        self.model, self.full_every, self.min_rows = model, full_every, min_rows
        self.splits = int(getattr(model, "splits", 1))
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.tokens_CL = torch.empty(0)  # what the kept keys and values were computed of
        self.rows_CA: torch.Tensor | None = None
        self.valid_CA = torch.empty(0)
        self._calls = self._layer = 0
        self.offset = self._rows_before_tokens()

    def _rows_before_tokens(self) -> int:
        """Where a model puts its first token: at 1 after a class token; found by asking for it."""
        rows: list[int] = []
        tokens_1L = torch.full((1, self.model.num_tokens), self.model.mask_token_id, device=_device(self.model))
        first_1L = torch.arange(self.model.num_tokens, device=tokens_1L.device)[None] == 0
        with self._watched({-1: lambda module, given: rows.append(int(given[-1].nonzero()[0, 1]))}):
            self.model.features(tokens_1L, None, first_1L)
        return rows[0]

    def logits(
        self, tokens_CL: torch.Tensor, labels_C: torch.Tensor | None, wanted_CL: torch.Tensor, full: Pass
    ) -> torch.Tensor:
        """Logits (M, K) at the wanted positions by a full or a partial evaluation, whichever is due."""
        due = self._calls % self.full_every == 0
        self._calls += 1
        if due or not self.layers or self.tokens_CL.shape != tokens_CL.shape:
            return self._full(tokens_CL, labels_C, wanted_CL, full)
        return self._partial(tokens_CL, labels_C, wanted_CL)

    def spread(self, places_C: torch.Tensor) -> None:
        """Keeps for each row what was computed for row `places_C` of an evaluation of fewer, distinct rows."""
        self.layers = [(k[places_C], v[places_C]) for k, v in self.layers]
        self.tokens_CL = self.tokens_CL[places_C]

    def _full(
        self, tokens_CL: torch.Tensor, labels_C: torch.Tensor | None, wanted_CL: torch.Tensor, full: Pass
    ) -> torch.Tensor:
        self.layers, self.rows_CA = [], None
        with self._watched({}):
            logits_MK = full(tokens_CL, labels_C, wanted_CL)
        if len(self.layers) != len(self.model.blocks):
            raise ConfigError(
                f"sampler.full_every: found {self.full_every}; {type(self.model).__module__} does not attend by "
                "maskgit_core.layers.dropout.attention, so its keys cannot be kept; set it to 1"
            )
        count = len(tokens_CL)
        self.layers = [(k[:count].clone(), v[:count].clone()) for k, v in self.layers]
        self.tokens_CL = tokens_CL
        return logits_MK

    def _partial(self, tokens_CL: torch.Tensor, labels_C: torch.Tensor | None, wanted_CL: torch.Tensor) -> torch.Tensor:
        active_CL = wanted_CL | (tokens_CL != self.tokens_CL)
        active_CL[:, 0] |= ~active_CL.any(1)  # a row has at least one, so that it is treated alike in any batch
        count, kept = len(tokens_CL), self.layers
        copies = -(-self.min_rows // int(active_CL.sum()))
        if copies > 1:
            self.layers = [(k.repeat(copies, 1, 1, 1), v.repeat(copies, 1, 1, 1)) for k, v in kept]
        repeated_CL, labels_C = tokens_CL.repeat(copies, 1), None if labels_C is None else labels_C.repeat(copies)
        active_CL, asked_CL = active_CL.repeat(copies, 1), wanted_CL.repeat(copies, 1)
        self._aim(self._cells(active_CL))
        with self._watched({0: self._narrow, -1: self._ask}):
            logits_MK: torch.Tensor = self.model.logits(self.model.features(repeated_CL, labels_C, active_CL))
        self.rows_CA = None
        if copies > 1:
            self.layers = [(k[:count], v[:count]) for k, v in self.layers]
        self.tokens_CL = tokens_CL
        return logits_MK[asked_CL[active_CL]][: int(wanted_CL.sum())].float()

    def _cells(self, positions_CL: torch.Tensor) -> torch.Tensor:
        return positions_CL if self.splits == 1 else positions_CL.unflatten(1, (-1, self.splits)).any(-1)

    def _aim(self, active_CN: torch.Tensor) -> None:
        """Sets the active rows, by growing position, filled up to equal numbers with copies of the first."""
        counts_C1 = active_CN.sum(1, keepdim=True)
        order_CA = active_CN.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts_C1.max())]
        self.valid_CA = torch.arange(order_CA.shape[1], device=order_CA.device) < counts_C1
        self.rows_CA = torch.where(self.valid_CA, order_CA, order_CA[:, :1]) + self.offset

    def exchange(self, k_CHLd: torch.Tensor, v_CHLd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `exchanged`; layers are told apart by the order in which they ask."""
        if self.rows_CA is None:
            self.layers.append((k_CHLd, v_CHLd))
            return k_CHLd, v_CHLd
        k, v = self.layers[self._layer]
        self._layer += 1
        places = self.rows_CA[:, None, :, None].expand_as(k_CHLd)
        return k.scatter_(2, places, k_CHLd.to(k.dtype)), v.scatter_(2, places, v_CHLd.to(v.dtype))

    def _narrow(self, module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self.rows_CA is not None
        x_CLD = given[0]
        places = self.rows_CA[:, :, None].expand(-1, -1, x_CLD.shape[-1])
        return (x_CLD.gather(1, places), *given[1:])

    def _ask(self, module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*given[:-1], self.valid_CA)

    @contextmanager
    def _watched(self, hooks: dict[int, Any]) -> Iterator[None]:
        """Runs hooks before blocks by number, and answers attention layers meanwhile."""
        self._layer = 0
        blocks = list(self.model.blocks)
        handles = [blocks[place].register_forward_pre_hook(hook) for place, hook in hooks.items()]
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            for handle in handles:
                handle.remove()


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
