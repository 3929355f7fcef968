"""ReMDM's chances and the share of revealed tokens that they keep (arXiv:2503.00307, section 3)."""

import pytest
import torch
from shared_logits import SharedLogits

from maskgit_core import rng
from maskgit_core.samplers.remdm import Sampler

STRATEGIES = ["cap", "rescale", "conf", "loop"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("eta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 16, 64])
def test_chances_are_probabilities_and_keep_the_schedule(strategy: str, eta: float, num_steps: int) -> None:
    sampler = Sampler(num_steps=num_steps, strategy=strategy, eta=eta)
    shares = sampler.revealed_shares(64)
    assert shares[0] == 0.0 and shares[-1] == 1.0 and shares == sorted(shares)
    revealed = 0.0
    for step in range(num_steps):
        chance, sigma = sampler.chances(step, shares)
        assert 0.0 <= chance <= 1.0 and 0.0 <= sigma <= 1.0
        assert sigma <= (1.0 - shares[step + 1]) / max(shares[step], 1e-12) + 1e-12 or shares[step] == 0.0
        if strategy != "conf":
            revealed = revealed * (1.0 - sigma) + (1.0 - revealed) * chance
            assert revealed == pytest.approx(shares[step + 1], abs=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_are_masked_again_and_all_revealed_at_the_end(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, numbers = SharedLogits(16, 36), torch.arange(200)
    sampler = Sampler(num_steps=12, strategy=strategy, eta=0.2 if strategy != "conf" else 1.0)
    masks: list[float] = []
    original = sampler._again

    def watched(revealed_BL: torch.Tensor, *rest: object) -> torch.Tensor:
        masks.append(1.0 - revealed_BL.float().mean().item())
        again_BL = original(revealed_BL, *rest)  # type: ignore[arg-type]
        counts.append(int(again_BL.sum()))
        assert not (again_BL & ~revealed_BL).any()
        return again_BL

    counts: list[int] = []
    monkeypatch.setattr(Sampler, "_again", lambda self, *rest: watched(*rest))
    tokens = sampler.sample(model, numbers % 10, grid=(6, 6), seeds_B=rng.sample_seeds(0, numbers))
    assert tokens.shape == (200, 36) and tokens.min() >= 0 and tokens.max() < 16
    assert sum(counts) > 0 and counts[-1] == 0
    if strategy != "conf":
        shares = sampler.revealed_shares(36)
        assert all(abs(1.0 - mask - share) < 0.03 for mask, share in zip(masks, shares, strict=False))
    plain = Sampler(num_steps=12, strategy="cap", eta=0.0)
    once = plain.sample(model, numbers[:3], grid=(6, 6), seeds_B=rng.sample_seeds(0, numbers[:3]))
    assert once.max() < 16, "without remasking it is the sampler of masked diffusion"
