"""`maskgit push STEP OWNER/NAME`: a trained model or tokenizer as a Hugging Face repository."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

HELP = "send a trained model or tokenizer to the Hugging Face hub"
EPILOG = """\
Sends weights as safetensors, their description, the tokenizer a model was trained with, and a card with data, recipe,
scores and protocols from the store's records; nothing else. HF_TOKEN gives the rights, HF_ENDPOINT another server.
examples:
  maskgit push quickstart/train me/garments
  maskgit push quickstart/train me/garments --public --licence mit
  maskgit push quickstart/train me/garments --to FOLDER      write the files there, send nothing
afterwards, in Python: mg.load_model("hf:me/garments"), mg.load_tokenizer("hf:me/garments")
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Step, repository, `--public`, `--licence`, `--to`, `--store`."""
    parser.add_argument("step", help="a finished model or tokenizer: experiment/step, a fingerprint or a folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository, made where there is none")
    parser.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    parser.add_argument("--licence", default="other", help="of the weights, as the hub names it (default: other)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write the files here and send nothing")
    parser.add_argument("--store", type=Path, help="the store (default: MASKGIT_STORE or ./runs)")


def main(args: argparse.Namespace) -> int:
    """Collects the files and sends them; prints the address."""
    from experiments.store.find import default_store, select
    from maskgit_core.weights.hub_repos import send, split_name

    split_name(args.repository)
    store = args.store.expanduser().absolute() if args.store else default_store()
    folder = store / select(args.step, store).one.folder
    if args.to is not None:
        for name in collect(store, folder, args.repository, args.licence, args.to):
            print(args.to / name)
        return 0
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as place:
        names = collect(store, folder, args.repository, args.licence, Path(place))
        address = send(Path(place), args.repository, HfApi(), private=not args.public)
    print(
        f"sent {', '.join(names)}\n  {address}\n  in Python: mg.load_model or mg.load_tokenizer of hf:{args.repository}"
    )
    return 0


def collect(store: Path, folder: Path, repo_id: str, licence: str, into: Path) -> list[str]:
    """Puts the files of a repository into a folder; returns their names.

    Raises:
        ConfigError: the step is no trained model or tokenizer, or is not finished.
    """
    from experiments.results.model_card import KINDS, card, scores_of, upstream_of_kind
    from experiments.results.results import collect as all_results
    from experiments.store.documents import Manifest, Request
    from maskgit_core.errors import ConfigError
    from maskgit_core.files import link_or_copy, sha256_of, write_bytes, write_json
    from maskgit_core.weights.hub_repos import SUMS

    request = Request.needed(folder)
    if request.kind not in KINDS or Manifest.read(folder) is None:
        state = "is not finished" if request.kind in KINDS else f"makes {request.kind}, not a model or a tokenizer"
        raise ConfigError(f"{folder.name}: {state}; name a finished training, e.g. quickstart/train")
    names = {"model": ("model.json", "model.safetensors"), "tokenizer": ("tokenizer.json", "weights.safetensors")}
    sources = {request.kind: folder}
    if request.kind == "model" and (tokenizer := upstream_of_kind(store, folder, "tokenizer")) is not None:
        sources["tokenizer"] = tokenizer
    into.mkdir(parents=True, exist_ok=True)
    for kind, place in sources.items():
        for name in names[kind]:
            if not (place / "files" / name).is_file():
                raise ConfigError(f"{place.name}: has no {name}; only models and tokenizers trained here can be sent")
            link_or_copy(place / "files" / name, into / name)
    results = scores_of(all_results(store), folder)
    text = card(repo_id, folder, results, licence=licence, has_tokenizer="tokenizer" in sources)
    write_bytes(into / "README.md", text.encode())
    sent = sorted(path.name for path in into.iterdir() if path.name != SUMS)
    write_json(into / SUMS, {name: sha256_of(into / name) for name in sent})
    return [*sent, SUMS]
