"""Work over images cut into blocks of fixed size, so that results depend neither on ranks nor on restarts.

Block k holds the items [k * BLOCK, (k + 1) * BLOCK). Whoever computes it publishes one safetensors file; the sums over
blocks are then taken in block order by one process. A block is the same whoever computes it, so world sizes 1, 2 and 3
give the same bits, a killed run computes only what is missing, and memory stays flat.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskgit_core.batches.tokens import ahead
from maskgit_core.errors import DataError

BLOCK = 128

T = TypeVar("T")
Publish = Callable[[Path, Callable[[Path], object]], None]


class Blocks:
    """The block files of one named set of items.

    Args:
        folder: of the files, shared by all ranks and attempts.
        name: of the set; a word.
        count: number of items.
        publish: `publish(path, write)` calls `write(temporary)` and renames the result to `path`.
        rank, world_size: of this process; block k belongs to rank k % world_size.
        should_stop: asked between blocks.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        count: int,
        publish: Publish,
        *,
        rank: int = 0,
        world_size: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.name, self.count, self.publish = Path(folder), name, count, publish
        self.rank, self.world_size, self.should_stop = rank, world_size, should_stop
        self.num_blocks = -(-count // BLOCK)

    def path(self, block: int) -> Path:
        """The file of a block; its name holds the count, so a changed request never meets old files."""
        return self.folder / f"{self.name}-{self.count}-{block:05d}.safetensors"

    def items(self, block: int) -> range:
        """The items of a block."""
        return range(block * BLOCK, min(self.count, (block + 1) * BLOCK))

    def compute(self, work: Callable[[T], dict[str, Tensor]], read: Callable[[range], T]) -> Iterator[int]:
        """Computes and publishes this rank's missing blocks; yields the number of items after each block.

        Ends early, with blocks missing, when `should_stop` says so; `missing()` tells.

        Args:
            work: from what `read` gave to the block's tensors.
            read: called in a thread of its own, one block ahead of `work`.
        """
        own = range(self.rank, self.num_blocks, self.world_size)
        missing = {block: self.items(block) for block in own if not self.path(block).is_file()}
        with contextlib.closing(ahead(map(read, missing.values()), 1)) as ready:
            for block in own:
                if self.should_stop():
                    return
                if block in missing:
                    tensors = {k: v.detach().cpu().contiguous() for k, v in work(next(ready)).items()}
                    self.publish(self.path(block), lambda path, tensors=tensors: save_file(tensors, path))  # type: ignore[misc]
                yield len(self.items(block))

    def missing(self) -> list[int]:
        """Blocks that nobody has published yet."""
        return [block for block in range(self.num_blocks) if not self.path(block).is_file()]

    def wait(self, poll_s: float = 0.05) -> bool:
        """Waits until every rank's blocks are there; False where it was asked to stop before."""
        while self.missing():
            if self.should_stop():
                return False
            time.sleep(poll_s)
        return True

    def read(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The tensors of every block, in order; only those of `names` where given.

        Raises:
            DataError: a block's file is missing or damaged.
        """
        for block in range(self.num_blocks):
            path = self.path(block)
            try:
                with safe_open(path, framework="pt") as file:
                    yield {name: file.get_tensor(name) for name in names or file.keys()}
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: cannot be read ({error}); remove it and run again") from error

    def remove(self) -> None:
        """Deletes the block files; called when the results are written."""
        for block in range(self.num_blocks):
            self.path(block).unlink(missing_ok=True)

    def part(self, prefix: str) -> BlocksPart:
        """Only the tensors named `<prefix>.<name>`, as if they were blocks of their own."""
        return BlocksPart(self, prefix)


class BlocksPart:
    """Tensors of blocks whose names begin with a prefix; read like `Blocks`."""

    def __init__(self, blocks: Blocks, prefix: str) -> None:
        self._blocks, self._prefix = blocks, prefix
        self.name, self.count = f"{blocks.name}-{prefix}", blocks.count

    def read(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The named tensors of every block, in order, without the prefix."""
        for tensors in self._blocks.read(*(f"{self._prefix}.{name}" for name in names)):
            yield {name.removeprefix(f"{self._prefix}."): tensor for name, tensor in tensors.items()}


class ReadableBlocks(Protocol):
    """The outputs in blocks that the accumulators need."""

    name: str
    count: int

    def read(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The named tensors of every block, in order."""
