"""Published weights become a model artifact, or are refused in one line."""

from pathlib import Path

import pytest
import torch

from experiments.config.specs import Input, ModelSpec
from experiments.running.attempt import Attempt
from experiments.running.components import load_model
from experiments.stages import import_model
from maskgit_core.errors import WeightsError

SMALL = {"dim": 32, "num_layers": 1, "num_heads": 4}
FACTS = {"codebook_size": 8, "grid_height": 2, "grid_width": 3, "num_classes": 4}


@pytest.mark.parametrize(
    ("name", "container", "prefix"),
    [
        ("halton", "model_state_dict", "module."),
        ("official", "state_dict", "_orig_mod.module."),
        ("prenorm", "model", ""),
    ],
)
def test_checkpoints_load_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, container: str, prefix: str
) -> None:
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    spec = ModelSpec(name, SMALL)
    model = spec.build(codebook_size=8, num_tokens=6, num_classes=4).eval()
    path = tmp_path / "published.pth"
    torch.save({container: {prefix + key: value for key, value in model.state_dict().items()}}, path)
    attempt = Attempt(tmp_path / "step")
    import_model.run(attempt, model=spec, weights=str(path), **FACTS)
    attempt.close()
    (tmp_path / "step" / "files").symlink_to(attempt.files)
    source = Input("published", "model", tmp_path / "step", "f" * 64, attempt.notes.facts, {})
    tokens, labels = torch.tensor([[0, 3, 7, 1, 2, model.mask_token_id]]), torch.tensor([2])
    with torch.no_grad():
        assert torch.equal(load_model(source)(tokens, labels), model(tokens, labels))
    with pytest.raises(WeightsError, match=r"published\.pth: "):
        wrong = ModelSpec(name, {**SMALL, "num_layers": 2})
        import_model.run(Attempt(tmp_path / "wrong"), model=wrong, weights=str(path), **FACTS)
