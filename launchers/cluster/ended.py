"""Called by the job script after a task has ended for good: `python -m launchers.cluster.ended FOLDER INDEX CODE`.

Calls each call's `ended` with the step's folder and the call's exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launchers.calls import resolve
from maskgit_core.files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    """Always 0: nothing that happens here may change how the job ends."""
    folder, index, code = argv if argv is not None else sys.argv[1:]
    for position, call in enumerate((read_json(Path(folder) / "batch.json") or {})["tasks"][int(index)]):
        notes = [read_json(path) or {} for path in sorted((Path(folder) / "ends").glob(f"{index}-{position}.*json"))]
        codes = [int(note["code"]) for note in notes if "code" in note]
        bad = next((one for one in codes if one), 0)
        if call.get("ended"):
            resolve(call["ended"])(call["args"][0], bad if codes else int(code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
