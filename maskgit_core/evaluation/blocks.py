"""Work over images cut into blocks of fixed size, so that results depend neither on ranks nor on restarts.

Block k holds the items [k * BLOCK, (k + 1) * BLOCK). Whoever computes it publishes it in a safetensors file, with some
neighbours where there are many; the sums over blocks are then taken in block order by one process. A block is the same
whoever computes it, so world sizes 1, 2 and 3 give the same bits, a killed run computes only what is missing, and
memory stays flat.
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
#: Many small files burden a cluster's file system, few large ones are uneven work for many ranks.
MOST_BLOCKS_A_FILE, FILES = 16, 32

T = TypeVar("T")
Publish = Callable[[Path, Callable[[Path], object]], None]


class Blocks:
    """The block files of one named set of items.

    Args:
        folder: of the files, shared by all ranks and attempts.
        name: of the set; a word.
        count: number of items.
        publish: `publish(path, write)` calls `write(temporary)` and renames the result to `path`.
        rank, world_size: of this process; file k belongs to rank k % world_size.
        should_stop: asked between blocks.

    Attributes:
        blocks_a_file: of count alone, so that any number of ranks finds the same files: 1 below 8,192 items, then as
            many as make 32 files, at most 16 (2,048 items).
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
        self.blocks_a_file = max(1, min(MOST_BLOCKS_A_FILE, self.num_blocks // FILES))
        self.num_files = -(-self.num_blocks // self.blocks_a_file)

    def path(self, number: int) -> Path:
        """A file of blocks; its name holds the count, so a changed request never meets old files."""
        return self.folder / f"{self.name}-{self.count}-{number:05d}.blocks.safetensors"

    def within(self, number: int) -> range:
        """The blocks of a file."""
        return range(number * self.blocks_a_file, min(self.num_blocks, (number + 1) * self.blocks_a_file))

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
        own = range(self.rank, self.num_files, self.world_size)
        missing = {number for number in own if not self.path(number).is_file()}
        wanted = (self.items(block) for number in own if number in missing for block in self.within(number))
        with contextlib.closing(ahead(map(read, wanted), 1)) as ready:
            for number in own:
                made: dict[str, Tensor] = {}
                for block in self.within(number):
                    if self.should_stop():
                        return
                    if number in missing:
                        made |= {f"{block}.{k}": v.detach().cpu().contiguous() for k, v in work(next(ready)).items()}
                        if block == self.within(number)[-1]:
                            self.publish(self.path(number), lambda path, made=made: save_file(made, path))  # type: ignore[misc]
                    yield len(self.items(block))

    def missing(self) -> list[int]:
        """Files that nobody has published yet."""
        return [number for number in range(self.num_files) if not self.path(number).is_file()]

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
            DataError: a file is missing or damaged.
        """
        for number in range(self.num_files):
            path = self.path(number)
            try:
                with safe_open(path, framework="pt") as file:
                    kinds = names or sorted({name.partition(".")[2] for name in file.keys()})  # noqa: SIM118
                    for block in self.within(number):
                        yield {name: file.get_tensor(f"{block}.{name}") for name in kinds}
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: cannot be read ({error}); remove it and run again") from error

    def remove(self) -> None:
        """Deletes the files; called when the results are written."""
        for number in range(self.num_files):
            self.path(number).unlink(missing_ok=True)

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
