"""Laws and drills of caching: the same bytes however many processes make it and however often they are killed."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskgit_core.errors import DataError
from maskgit_core.images.encoding import Encoder, state_digest
from maskgit_core.images.views import Views
from maskgit_core.shards.checks import problems
from maskgit_core.shards.maker import CacheMaker, Settings, finished_indexes
from maskgit_core.shards.reader import TokenShards
from maskgit_core.shards.turns import ShardTurns
from maskgit_core.shards.writer import write_manifest

FORK = multiprocessing.get_context("fork")
NUM = 61


class Pictures:
    """Pictures made from their index; `broken` ones cannot be decoded."""

    num_classes = 5

    def __init__(self, count=NUM, size=(16, 16), broken=(), pause_s=0.0):
        self.count, self.size, self.broken, self.pause_s = count, size, broken, pause_s

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.pause_s)
        if index in self.broken:
            raise DataError(f"/data/img_{index}.JPEG: the picture cannot be decoded (truncated); remove or replace it")
        pixels = np.random.default_rng(index).integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return SimpleNamespace(key=f"img_{index:04d}.JPEG", image=pixels, label=index % 5)


class MeanTokenizer(torch.nn.Module):
    """The mean brightness of each 4 x 4 cell, in 256 steps."""

    codebook_size, downsample_factor, in_channels = 256, 4, 3

    def encode(self, images):
        return ((self.latents(images)[:, 0] + 1) * 127.5).round().long().clamp(0, 255)

    def latents(self, images):
        return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)


def settings_of(**options):
    return Settings(**{"shard_size": 8, "batch_size": 3, "num_workers": 2, **options})


def maker(folder, pictures=None, settings=None, **options):
    return CacheMaker(
        pictures or Pictures(), Encoder(MeanTokenizer(), "cpu", "fp32"), folder, settings or settings_of(), **options
    )


def published(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert maker(folder).run()
    return published(folder)


def _work(folder, rank, world_size, pictures):
    torch.set_num_threads(1)
    maker(folder, pictures, rank=rank, world_size=world_size).run()


def start(folder, world_size, pictures=None):
    pictures = pictures or Pictures()
    processes = [FORK.Process(target=_work, args=(folder, r, world_size, pictures)) for r in range(world_size)]
    for process in processes:
        process.start()
    return processes


def finish(processes):
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_every_image_is_there_once_and_right(tmp_path, undisturbed):
    assert maker(tmp_path).run()
    layout, indexes = finished_indexes(tmp_path, 8)
    write_manifest(tmp_path, layout, indexes, num_classes=5)
    shards = TokenShards(tmp_path)
    assert len(shards) == NUM and [shards.key(i) for i in range(NUM)] == [Pictures()[i].key for i in range(NUM)]
    assert list(problems(tmp_path)) == []
    tokenizer = MeanTokenizer()
    for index in (0, 7, 8, 60):
        image = torch.from_numpy(Pictures()[index].image).permute(2, 0, 1)[None].float() / 127.5 - 1
        for variant, view in enumerate((image, image.flip(3))):
            tokens, labels = shards.gather([index], variant)
            assert tokens[0].tolist() == tokenizer.encode(view).flatten().tolist() and labels[0] == index % 5


@pytest.mark.parametrize("options", [{"batch_size": 100}, {"num_workers": 0}, {"batch_size": 1, "num_workers": 5}])
def test_how_it_runs_does_not_change_the_bytes(tmp_path, undisturbed, options):
    assert maker(tmp_path, settings=settings_of(**options)).run()
    assert published(tmp_path) == undisturbed


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_give_the_same_bytes(tmp_path, undisturbed, world_size):
    finish(start(tmp_path, world_size))
    assert published(tmp_path) == undisturbed
    assert not list(tmp_path.glob(".*"))  # neither claims nor temporary files stay behind


def test_progress_counts_every_image_once(tmp_path):
    assert maker(tmp_path, rank=1, world_size=2, stop=iter([False] * 8 + [True] * 99).__next__).run() is False
    before = sum(json.loads(p.read_text())["count"] for p in tmp_path.glob("shard-*.json"))
    reports = []
    assert maker(tmp_path, report=lambda done, clock: reports.append(done)).run()
    assert 0 < before < reports[0] and reports == sorted(reports) and reports[-1] == NUM


def test_two_writers_of_everything_do_no_harm(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(ShardTurns, "_is_alive", lambda *_: False)  # as if claims were never seen
    finish(start(tmp_path, 1) + start(tmp_path, 1))
    assert published(tmp_path) == undisturbed


def test_a_process_takes_over_what_a_lost_one_left(tmp_path, undisturbed):
    assert maker(tmp_path, rank=1, world_size=4).run()  # ranks 0, 2 and 3 never came
    assert published(tmp_path) == undisturbed


def drill(folder, expected, kills, world_size, seed):
    """Kills random processes at random moments until `kills` died, then lets the rest finish."""
    rng = random.Random(seed)
    pictures = Pictures(pause_s=0.001)
    killed = runs = 0
    while killed < kills:
        runs += 1
        processes = start(folder, world_size, pictures)
        for process in rng.sample(processes, k=rng.randint(1, world_size)):
            time.sleep(rng.uniform(0.0, 0.06))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        for process in processes:
            process.join(60)
        done = {p.stem for p in folder.glob("*.json")}
        whole = {Path(name).stem for name in published(folder) if name.endswith(".tar")}
        assert {n for n in done if n != "layout"} <= whole
        for name, data in published(folder).items():  # whatever has its final name is whole
            assert data == expected[name], name
        if len(whole) == len(expected) // 2:  # all done: begin anew
            assert set(published(folder)) <= set(expected)
            for path in folder.iterdir():
                path.unlink()
    finish(start(folder, world_size, pictures))
    assert published(folder) == expected and not list(folder.glob(".*"))
    return runs


def test_kills_at_random_moments_change_nothing(tmp_path, undisturbed):
    assert drill(tmp_path, undisturbed, kills=6, world_size=4, seed=1) >= 2


@pytest.mark.slow
def test_fifty_kills_at_random_moments_change_nothing(tmp_path, undisturbed):
    assert drill(tmp_path, undisturbed, kills=50, world_size=4, seed=2) >= 10


def test_kill_between_archive_and_index_is_mended_without_encoding_again(tmp_path, undisturbed):
    assert maker(tmp_path).run()
    (tmp_path / "shard-000003.json").unlink()
    again = maker(tmp_path)
    assert again.run() and again.clock.images == 0
    assert published(tmp_path) == undisturbed


def test_asked_to_stop_it_stops_and_goes_on_later(tmp_path, undisturbed):
    asked = itertools.count()
    assert not maker(tmp_path, stop=lambda: next(asked) > 6).run()
    half = published(tmp_path)
    assert 0 < len(half) < len(undisturbed)
    again = maker(tmp_path)
    assert again.run() and published(tmp_path) == undisturbed
    assert 0 < again.clock.images < NUM  # only what was missing


def test_unreadable_pictures_leave_out_their_shards_only(tmp_path, undisturbed):
    with pytest.raises(DataError) as caught:
        maker(tmp_path, Pictures(broken=(9, 14, 40))).run()
    line = str(caught.value)
    assert line.startswith("/data/img_9.JPEG: ") and "img_40.JPEG" in line and "3 of 61 pictures" in line
    assert "2 of 8 shards" in line and "\n" not in line
    missing = {p for p in undisturbed if p not in published(tmp_path)}
    assert missing == {f"shard-00000{n}.{e}" for n in (1, 5) for e in ("tar", "json")}
    with pytest.raises(DataError, match=r"shard-000001\.tar: this shard is missing"):
        finished_indexes(tmp_path, 8)
    assert maker(tmp_path).run() and published(tmp_path) == undisturbed


def test_pictures_of_different_sizes_are_refused_by_name(tmp_path):
    class Uneven(Pictures):
        def __getitem__(self, index):
            self.size = (16, 16 + 4 * (index == 5))
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"img_0005.JPEG: pictures of different sizes"):
        maker(tmp_path, Uneven(), settings_of(num_workers=1)).run()


def test_latents_are_kept_where_asked_for_and_refused_where_there_are_none(tmp_path):
    assert maker(tmp_path, settings=settings_of(latents=True)).run()
    layout, indexes = finished_indexes(tmp_path, 8)
    write_manifest(tmp_path, layout, indexes, num_classes=5)
    shards = TokenShards(tmp_path)
    latents = shards.latents([3])
    assert latents.shape == (1, 2, 1, 4, 4) and latents.dtype == np.float16
    assert np.array_equal(((latents.astype(np.float32) + 1) * 127.5).round()[0, 0].ravel(), shards.gather([3])[0][0])
    bare = torch.nn.Module()
    bare.encode = MeanTokenizer().encode
    bare.codebook_size = 256
    with pytest.raises(DataError, match=r"^latents: "):
        CacheMaker(Pictures(), Encoder(bare, "cpu", "fp32"), tmp_path / "b", settings_of(latents=True)).run()


def test_claims_of_the_dead_do_not_count_and_those_of_the_living_do(tmp_path):
    ours = ShardTurns(tmp_path, 3, 0, 1)
    theirs = ShardTurns(tmp_path, 3, 0, 1)
    assert list(itertools.islice(ours.available(), 2)) == [0, 1]
    assert list(theirs.available()) == [2]
    ours.release(0)
    assert list(theirs.available()) == [0]
    claim = tmp_path / ".shard-000001.tar.claim"
    owner = json.loads(claim.read_text())
    claim.write_text(json.dumps({**owner, "birth": "0"}))  # the pid lives on as another process
    assert list(theirs.available()) == [1]
    ours.close()
    theirs.close()


def test_a_claim_from_another_host_is_taken_over_when_it_stands_still(tmp_path, monkeypatch):
    (tmp_path / ".shard-000000.tar.claim").write_text(json.dumps({"host": "elsewhere", "pid": 1, "birth": "1"}))
    turns = ShardTurns(tmp_path, 1, 0, 1)
    assert list(turns.available()) == []
    monkeypatch.setattr("maskgit_core.shards.turns.STALE_S", 0.0)
    assert list(turns.available()) == [0]
    turns.close()


def test_the_digest_of_weights_names_values_not_modules():
    left, right = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert state_digest(left) != state_digest(right)
    right.load_state_dict(left.state_dict())
    assert state_digest(left) == state_digest(right)


VIEWS = [
    Views("original"),
    Views("flip"),
    Views("ten_crop", crop_size=12),
    Views("random_resized_crop", crop_size=12, num_crops=3, seed=4),
]


@pytest.mark.parametrize("views", VIEWS, ids=lambda v: v.kind)
def test_views_follow_their_boxes_and_depend_on_the_index_alone(views):
    image = np.random.default_rng(1).integers(0, 256, (20, 26, 3), dtype=np.uint8)
    made, boxes = views.of(image, 17)
    assert len(made) == len(boxes) == len(views.names) and boxes.dtype == np.int32
    again, _ = views.of(image, 17)
    assert np.array_equal(made, again)
    for view, (left, top, width, height, flip) in zip(made, boxes.tolist(), strict=True):
        assert 0 <= left <= left + width <= 26 and 0 <= top <= top + height <= 20
        if views.kind != "random_resized_crop":
            cut = image[top : top + height, left : left + width]
            assert np.array_equal(view, cut[:, ::-1] if flip else cut)
    if views.kind == "random_resized_crop":
        assert made.shape == (3, 12, 12, 3) and not np.array_equal(views.of(image, 18)[1], boxes)
        share = boxes[:, 2] * boxes[:, 3] / (20 * 26)
        assert np.all((share > 0.75) & (share <= 1))
    if views.kind == "flip":
        assert np.array_equal(made[1], image[:, ::-1])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kind": "ten_crop"}, "crop_size"),
        ({"kind": "random_resized_crop"}, "crop_size"),
        ({"kind": "flip", "crop_size": 8}, "crop_size"),
    ],
)
def test_views_that_cannot_be_name_the_key(options, word):
    with pytest.raises(DataError, match=f"^{word}: "):
        Views(**options)


def test_crops_larger_than_the_image_say_so():
    with pytest.raises(DataError, match=r"^crop_size: 32 does not fit into images of 20 x 16"):
        Views("ten_crop", crop_size=32).of(np.zeros((16, 20, 3), np.uint8), 0)
