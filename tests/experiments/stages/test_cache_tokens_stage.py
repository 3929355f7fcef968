"""The stage cache_tokens and the command `maskgit shards`, on small pictures with a small tokenizer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from experiments.cli import main
from experiments.config.specs import DatasetSpec, Input
from experiments.running.attempt import Attempt, Stopped
from experiments.running.components import load_tokenizer
from experiments.running.signals import StopFlag
from experiments.stages import cache_tokens
from maskgit_core.errors import DataError
from maskgit_core.shards.checks import problems
from maskgit_core.shards.reader import TokenShards
from maskgit_core.tokenizers.vq import Tokenizer

OPTIONS = {"width": 8, "num_blocks": 0, "codebook_size": 32}
COUNT = 22


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        path = folder / f"class_{index % 3}" / f"photo {index:02d}.v1.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


def make_tokenizer(folder: Path, seed: int = 0) -> Input:
    torch.manual_seed(seed)
    (folder / "files").mkdir(parents=True)
    tokenizer = Tokenizer(**OPTIONS)
    save_file({k: v.contiguous() for k, v in tokenizer.state_dict().items()}, folder / "files/weights.safetensors")
    description = {"name": "vq", "module": "", "options": OPTIONS, "facts": {"in_channels": 3}}
    (folder / "files/tokenizer.json").write_text(json.dumps(description))
    return Input(name="tokenizer", kind="tokenizer", folder=folder, fingerprint="f" * 64, facts={}, config={})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Input:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "step")


def spec(pictures: Path, size: int = 16) -> DatasetSpec:
    return DatasetSpec("image_folder", {"root": str(pictures), "image_size": size, "crop": "center"})


def run(attempt: Attempt, tokenizer: Input, pictures: Path, size: int = 16, **options) -> dict[str, bytes]:
    cache_tokens.run(
        attempt, tokenizer=tokenizer, dataset=spec(pictures, size), **{"shard_size": 6, "batch_size": 4, **options}
    )
    return {p.name: p.read_bytes() for p in sorted(attempt.files.iterdir())}


def test_the_cache_holds_the_tokens_of_every_picture(tmp_path, tokenizer, pictures):
    attempt = Attempt(tmp_path / "step")
    run(attempt, tokenizer, pictures)
    shards = TokenShards(attempt.files)
    assert list(problems(attempt.files)) == []
    assert attempt.notes.facts == {
        "codebook_size": 32,
        "grid": [4, 4],
        "num_classes": 3,
        "class_names": ["class_0", "class_1", "class_2"],
        "num_samples": COUNT,
        "num_variants": 2,
    }
    network, images = load_tokenizer(tokenizer), spec(pictures).build()
    for index in range(COUNT):
        sample = images[index]
        assert shards.key(index) == sample.key
        pixels = torch.from_numpy(np.stack([sample.image, sample.image[:, ::-1]])).permute(0, 3, 1, 2)
        expected = network.encode(pixels.float() / 127.5 - 1).flatten(1)
        for variant in range(2):
            tokens, labels = shards.gather([index], variant)
            assert np.array_equal(tokens[0], expected[variant]) and labels[0] == sample.label
    manifest = shards.manifest
    assert manifest["variants"] == ["original", "flip"] and manifest["encoding"]["precision"] == "fp32"
    assert manifest["dataset"]["options"]["crop"] == "center" and len(manifest["tokenizer"]["weights_sha256"]) == 64
    assert attempt.notes.datasets[0].context == "tokens"


def test_a_later_attempt_reuses_the_pieces_and_ranks_share_them(tmp_path, tokenizer, pictures):
    first = run(Attempt(tmp_path / "step", 1), tokenizer, pictures)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "step/parts").rglob("*.tar")}
    assert run(Attempt(tmp_path / "step", 2), tokenizer, pictures) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "step/parts").rglob("*.tar")} == stamps
    other = Attempt(tmp_path / "other", rank=1, world_size=2)
    assert run(other, tokenizer, pictures) == {}  # rank 1 makes shards, rank 0 describes them
    assert run(Attempt(tmp_path / "other", rank=0, world_size=2), tokenizer, pictures) == first


def test_another_tokenizer_does_not_find_the_old_ones_shards(tmp_path, tokenizer, pictures):
    first = run(Attempt(tmp_path / "step", 1), tokenizer, pictures)
    second = run(Attempt(tmp_path / "step", 2), make_tokenizer(tmp_path / "rebuilt", seed=1), pictures)
    assert second["shard-000000.tar"] != first["shard-000000.tar"]


def test_stopped_between_batches_it_goes_on_with_the_rest(tmp_path, tokenizer, pictures):
    class SoonFlag(StopFlag):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 4

    stopped = Attempt(tmp_path / "step", 1, stop=SoonFlag())
    with pytest.raises(Stopped):
        run(stopped, tokenizer, pictures)
    assert not (stopped.files / "manifest.json").exists()
    made = set((tmp_path / "step/parts").rglob("*.tar"))
    assert 0 < len(made) < 4
    whole = run(Attempt(tmp_path / "step", 2), tokenizer, pictures)
    assert whole == run(Attempt(tmp_path / "undisturbed"), tokenizer, pictures)


@pytest.mark.parametrize(
    ("options", "size", "views"),
    [
        ({"variants": "original"}, 16, 1),
        ({"variants": "ten_crop", "crop_size": 16}, 20, 10),
        ({"variants": "random_resized_crop", "crop_size": 16, "num_crops": 3}, 20, 3),
    ],
)
def test_every_kind_of_views_is_cached(tmp_path, tokenizer, pictures, options, size, views):
    attempt = Attempt(tmp_path / "step")
    run(attempt, tokenizer, pictures, size, **options)
    shards = TokenShards(attempt.files)
    assert shards.num_variants == views and shards.grid == (4, 4) and list(problems(attempt.files)) == []
    if views > 1:
        image = spec(pictures, size).build()[5].image
        left, top, width, height, flip = shards.boxes([5])[0, views - 1].tolist()
        cut = image[top : top + height, left : left + width]
        view = np.asarray(Image.fromarray(cut).resize((16, 16), Image.Resampling.BICUBIC))
        view = view[:, ::-1] if flip else view
        tokens = load_tokenizer(tokenizer).encode(torch.from_numpy(view.copy()).permute(2, 0, 1)[None] / 127.5 - 1)
        assert np.array_equal(shards.gather([5], views - 1)[0][0], tokens.flatten())


def test_a_data_set_cut_at_random_keeps_its_boxes(tmp_path, tokenizer, pictures):
    options = {"root": str(pictures), "image_size": 16, "crop": "random_resized", "crop_seed": 3}
    attempt = Attempt(tmp_path / "step")
    data = DatasetSpec("image_folder", options)
    cache_tokens.run(attempt, tokenizer=tokenizer, dataset=data, shard_size=6, batch_size=4)
    shards = TokenShards(attempt.files)
    boxes = shards.boxes(list(range(COUNT)))
    assert boxes.shape == (COUNT, 2, 5) and list(problems(attempt.files)) == []
    images = data.build()
    assert [tuple(b) for b in boxes[:, 0, :4].tolist()] == [images[i].box for i in range(COUNT)]
    assert boxes[:, 0, 4].tolist() == [0] * COUNT and boxes[:, 1, 4].tolist() == [1] * COUNT


def test_an_undecodable_picture_among_good_ones_is_named(tmp_path, tokenizer, pictures):
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    broken = copy / "class_1" / "photo 13.v1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    attempt = Attempt(tmp_path / "step")
    with pytest.raises(DataError) as caught:
        run(attempt, tokenizer, copy)
    assert str(caught.value).startswith(f"{broken}: ") and "1 of 22 pictures" in str(caught.value)
    assert not (attempt.files / "manifest.json").exists()
    assert len(list((tmp_path / "step/parts").rglob("*.tar"))) == 3  # all but its own shard
    shutil.copyfile(pictures / "class_1" / "photo 13.v1.png", broken)
    assert len(run(Attempt(tmp_path / "step", 2), tokenizer, copy)) == 5


@pytest.fixture
def cache(tmp_path, tokenizer, pictures) -> Path:
    attempt = Attempt(tmp_path / "step")
    run(attempt, tokenizer, pictures)
    return attempt.files


def test_info_and_verify_speak_of_the_cache(cache, tokenizer, tmp_path, capsys):
    assert main(["shards", "info", str(cache), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_samples"] == COUNT and found["num_shards"] == 4 and 1 <= found["codebook_used"] <= 32
    assert main(["shards", "info", str(cache)]) == 0
    assert "22 in 4 shards" in capsys.readouterr().out
    picture = tmp_path / "decoded.png"
    decode = ["--decode", "5", "--tokenizer", str(tokenizer.folder), "--out", str(picture)]
    assert main(["shards", "verify", str(cache), *decode]) == 0
    assert Image.open(picture).size == (5 * 16, 2 * 16)
    path = cache / "shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert main(["shards", "verify", str(cache)]) == 1
    assert str(path) in capsys.readouterr().err


def test_npz_goes_out_and_in_by_command(cache, tmp_path, capsys):
    assert main(["shards", "export", str(cache), str(tmp_path / "npz")]) == 0
    arguments = ["shards", "import", str(tmp_path / "npz"), str(tmp_path / "back")]
    assert main(arguments) == 2  # the files do not say how large the codebook is
    assert "--codebook-size" in capsys.readouterr().err
    assert main([*arguments, "--codebook-size", "32"]) == 0
    left, right = TokenShards(cache), TokenShards(tmp_path / "back")
    assert np.array_equal(left.gather(range(COUNT), 1)[0], right.gather(range(COUNT), 1)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "nowhere"], "nowhere/manifest.json: no manifest"),
        (["export", "nowhere"], "target: "),
        (["push", "nowhere", "no-slash"], "owner/name"),
        (["import", "a", "b", "--codebook-size", "4", "--grid", "four"], "--grid: "),
        (["import", "nowhere", "b", "--codebook-size", "4"], "no npz files"),
    ],
)
def test_requests_that_cannot_be_met_say_why_in_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["shards", *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line and "\n" not in line
