"""The loop of samplers whose order is a score of each masked position: draw all, keep those with the highest scores.

Shapes: B samples, L tokens, T steps, M masked positions (row-major over the batch), K codebook.
"""

from collections.abc import Callable

import torch

from maskgit_core import rng
from maskgit_core.decoding import LEAST_TEMPERATURE, Decoder, chosen, draw_tokens

#: (logits over all tokens after the temperature (M, K), drawn tokens (M,)) -> scores (M,); the highest are kept.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def reveal_by_score(
    state: Decoder,
    score: Score,
    counts_TB: torch.Tensor,
    *,
    temperatures: tuple[float, float],
    choice_temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> torch.Tensor:
    """Reveals everything in T steps: tokens (B, L).

    Args:
        counts_TB: how many tokens stay masked after each step.
        temperatures: of the token draw, from the first value at progress 0 to the second at 1.
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
        top_k, top_p: limits of the token draw; scores are taken before them.
    """
    num_steps, length = len(counts_TB), state.tokens_BL.shape[1]
    for step in range(num_steps):
        left = 1.0 - (step + 1) / num_steps
        temperature = temperatures[1] + (temperatures[0] - temperatures[1]) * left
        logits_MK = state.logits(state.masked_BL, step, counts_TB[step]) / max(temperature, LEAST_TEMPERATURE)
        uniforms_BL = rng.uniforms(state.seeds_B, rng.TOKEN, length, step)
        drawn_M = draw_tokens(logits_MK, uniforms_BL[state.masked_BL], top_k=top_k, top_p=top_p)
        scores_M = score(logits_MK, drawn_M).float()
        drawn_BL = torch.zeros_like(state.tokens_BL).masked_scatter(state.masked_BL, drawn_M)
        scores_BL = torch.zeros_like(drawn_BL, dtype=torch.float32).masked_scatter(state.masked_BL, scores_M)
        scores_BL = scores_BL + choice_temperature * left * rng.gumbels(state.seeds_B, rng.CHOICE, length, step)
        count_B = state.masked_BL.sum(1) - counts_TB[step]
        state.reveal(chosen(scores_BL, state.masked_BL, count_B), drawn_BL)
    return state.tokens_BL
