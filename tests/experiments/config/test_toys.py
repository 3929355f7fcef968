"""What `toy=true` makes of a request, without running it."""

from pathlib import Path

from PIL import Image

from experiments.config.checker import StepRequest
from experiments.planning.pipeline import build
from experiments.planning.toys import write_pictures
from maskgit_core.datasets.imagenet import Dataset


def toy(tmp_path: Path, *arguments: str) -> dict[str, StepRequest]:
    graph = build([*arguments, "toy=true", f"paths.store={tmp_path / 'runs'}"])
    return {node.request.name: node.request for node in graph.nodes.values()}


def test_rows_that_differ_in_their_weights_alone_run_once(tmp_path: Path) -> None:
    steps = toy(tmp_path, "experiment=tokenizer_table", "dataset.root=nowhere")
    assert sorted(request.config["tokenizer"]["name"] for request in steps.values()) == sorted(
        ("maskgit_vqgan", "taming", "llamagen", "amused", "maskbit", "titok", "open_magvit2", "ibq")
    )


def test_a_network_of_one_image_size_gets_images_of_it(tmp_path: Path) -> None:
    """Random weights are small themselves; a file of one's own has the published size."""
    asked = ["experiment=tokenizer_table", "dataset.root=nowhere"]
    sizes = {name: r.config["dataset"]["image_size"] for name, r in toy(tmp_path, *asked).items()}
    assert set(sizes.values()) == {32}
    (tmp_path / "own.pt").write_bytes(b"weights")
    own = toy(tmp_path, *asked, f"titok_l32.tokenizer.weights={tmp_path / 'own.pt'}")
    assert {n: r.config["dataset"]["image_size"] for n, r in own.items()} == {**sizes, "titok_l32": 256}


def test_a_split_of_few_pictures_is_repeated(tmp_path: Path) -> None:
    """Ten splits of an Inception score need ten pictures."""
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01514668"):
            (tmp_path / "data" / split / wnid).mkdir(parents=True)
            Image.new("RGB", (40, 36)).save(tmp_path / "data" / split / wnid / "one.JPEG")
    write_pictures(tmp_path / "toy", name="imagenet", root=str(tmp_path / "data"), split="val")
    for split in ("train", "val"):
        assert len(Dataset(root=str(tmp_path / "toy"), split=split, partial=True)) == 12
