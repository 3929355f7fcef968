"""`maskgit pull OWNER/NAME`: a trained model or tokenizer from the Hugging Face hub onto this machine."""

from __future__ import annotations

import argparse

HELP = "fetch a model or tokenizer that `maskgit push` sent"
EPILOG = """\
Files go to Hugging Face's cache (HF_HOME) and are checked against the sha256 they were sent with.
examples:
  maskgit pull me/garments
  maskgit pull me/garments@v1
afterwards, in Python: mg.load_model("hf:me/garments"), mg.load_tokenizer("hf:me/garments")
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Repository."""
    parser.add_argument("repository", metavar="OWNER/NAME[@REVISION]", help="the repository")


def main(args: argparse.Namespace) -> int:
    """Fetches, checks and prints the folder."""
    from maskgit_core.errors import WeightsError
    from maskgit_core.weights.hub_repos import PREFIX, fetched

    folder = fetched(args.repository)
    kinds = [kind for kind in ("model", "tokenizer") if (folder / f"{kind}.json").is_file()]
    if not kinds:
        raise WeightsError(
            f"{args.repository}: has no model.json or tokenizer.json; maskgit push makes such repositories"
        )
    print(folder)
    for kind in kinds:
        print(f'  mg.load_{kind}("{PREFIX}{args.repository.removeprefix(PREFIX)}")')
    return 0
