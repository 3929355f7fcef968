"""Laws of every sampler in `maskgit_core/samplers/`: found by listing the folder."""

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import maskgit_core.samplers
from maskgit_core import rng
from maskgit_core.decoding import Decoder, Guidance, draw_tokens
from maskgit_core.errors import ConfigError
from maskgit_core.guidance import guidance_scale
from maskgit_core.layers.critic import Critic
from maskgit_core.masking import SCHEDULES
from maskgit_core.models.prenorm import Model
from maskgit_core.samplers.halton import halton_cells

NAMES = sorted(p.stem for p in Path(maskgit_core.samplers.__path__[0]).glob("*.py") if p.stem != "__init__")
GRID = (4, 5)


def built(name: str, **options: Any) -> Any:
    """The sampler of a file; an option that it does not have leaves the test out.

    One that asks for a critic is given an untrained one: the laws hold for whatever it says.
    """
    cls = importlib.import_module(f"maskgit_core.samplers.{name}").Sampler
    if absent := options.keys() - inspect.signature(cls.__init__).parameters.keys():
        pytest.skip(f"{name} has no {', '.join(sorted(absent))}")
    sampler = cls(**options)
    if cls.needs_critic:
        plain = sampler.sample
        object.__setattr__(sampler, "sample", lambda m, *a, **k: plain(m, *a, **{"critic": judge_of(m), **k}))
    return sampler


def judge_of(model: Any) -> Critic:
    """An untrained critic whose trunk is the model."""
    torch.manual_seed(1)
    critic = Critic(model, is_frozen=True).eval()
    torch.nn.init.normal_(critic.weight)
    return critic


def remasks(name: str) -> bool:
    """Whether a sampler may mask positions again; its file says so and what holds instead."""
    return bool(getattr(importlib.import_module(f"maskgit_core.samplers.{name}"), "REMASKS", False))


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    model = Model(codebook_size=17, num_tokens=20, num_classes=3, dim=32, num_layers=2, num_heads=4, dropout=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 2.5}, {"guidance_scale": 2.5, "guidance_schedule": "linear-r", "top_k": 5}]
)
def test_no_mask_is_left_and_any_batch_size_gives_the_same_tokens(name: str, options: dict, model: Model) -> None:
    sampler = built(name, num_steps=6, **options)
    seeds, labels = rng.sample_seeds(3, torch.arange(64)), torch.arange(64) % 4
    whole = sampler.sample(model, labels, grid=GRID, seeds_B=seeds)
    assert whole.shape == (64, 20) and whole.min() >= 0 and whole.max() < 17
    for size in (1, 7):
        parts = [
            sampler.sample(model, labels[i : i + size], grid=GRID, seeds_B=seeds[i : i + size])
            for i in range(0, 64, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    other = sampler.sample(model, labels, grid=GRID, seeds_B=rng.sample_seeds(4, torch.arange(64)))
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("name", NAMES)
def test_each_position_is_revealed_once_and_known_tokens_stay(
    name: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    reveals: list[torch.Tensor] = []
    original = Decoder.reveal

    def watched(self: Decoder, newly_BL: torch.Tensor, drawn_BL: torch.Tensor) -> None:
        before = self.masked_BL
        original(self, newly_BL, drawn_BL)
        reveals.append(before & ~self.masked_BL)

    monkeypatch.setattr(Decoder, "reveal", watched)
    known = torch.full((3, 20), -1)
    known[0, :9] = torch.arange(9)
    known[1] = 5
    before = known.clone()
    seeds = rng.sample_seeds(0, torch.arange(3))
    tokens = built(name, num_steps=5).sample(model, torch.tensor([0, 1, 2]), grid=GRID, seeds_B=seeds, known_BL=known)
    times = torch.stack(reveals).sum(0)
    assert torch.equal(tokens[before >= 0], before[before >= 0]) and torch.equal(known, before)
    assert tokens.min() >= 0 and tokens.max() < 17
    if remasks(name):  # the law in its place: given tokens are never touched, all others are revealed
        assert torch.equal(times > 0, before < 0) and len(reveals) == 5
        return
    assert torch.equal(times, (before < 0).long())
    assert len(reveals) == 5 and all(step[2].any() for step in reveals)


@pytest.mark.parametrize("name", NAMES)
def test_bad_requests_end_before_any_work(name: str, model: Model) -> None:
    seeds, labels = rng.sample_seeds(0, torch.arange(2)), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=r"sampler.num_steps: 21 steps for 20 tokens"):
        built(name, num_steps=21).sample(model, labels, grid=GRID, seeds_B=seeds)
    with pytest.raises(ConfigError, match=r"class 7 is out of range; the model knows classes 0 to 2"):
        built(name, num_steps=2).sample(model, torch.tensor([0, 7]), grid=GRID, seeds_B=seeds)
    with pytest.raises(ConfigError, match=r"3 x 5 cells do not fit a model of 20 tokens"):
        built(name, num_steps=2).sample(model, labels, grid=(3, 5), seeds_B=seeds)
    with pytest.raises(ConfigError, match="id 99 is not in the model's codebook of 17"):
        built(name, num_steps=2).sample(model, labels, grid=GRID, seeds_B=seeds, known_BL=torch.full((2, 20), 99))
    free = Model(codebook_size=17, num_tokens=20, dim=16, num_layers=1, num_heads=2).eval()
    with pytest.raises(ConfigError, match=r"guidance_scale: 2.0 with an unconditional model"):
        built(name, num_steps=2, guidance_scale=2.0).sample(free, None, grid=GRID, seeds_B=seeds)
    tokens = built(name, num_steps=2).sample(free, None, grid=GRID, seeds_B=seeds)
    assert tokens.shape == (2, 20) and tokens.max() < 17


def test_guided_logits_equal_two_plain_passes(model: Model) -> None:
    labels, seeds = torch.tensor([0, 2, 2, 1, 0]), rng.sample_seeds(1, torch.arange(5))
    for known in (None, torch.where(torch.arange(20) % 3 == 0, 4, -1).repeat(5, 1)):
        state = Decoder(model, labels, GRID, seeds, known, Guidance(3.0), 8)
        left = state.unknown_B - 1
        ours = state.logits(state.masked_BL, 0, left)
        with torch.no_grad():
            cond, null = model(state.tokens_BL, labels), model(state.tokens_BL, torch.full_like(labels, 3))
        assert torch.allclose(ours, (null + 3 * (cond - null))[state.masked_BL], atol=2e-5)


def test_token_draw_follows_the_distribution_and_its_limits() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    points = rng.uniforms(rng.sample_seeds(0, torch.arange(1)), rng.TOKEN, 20000)[0]
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw_tokens(logits.expand(20000, -1), points, temperature=temperature)
        shares = drawn.bincount(minlength=4) / 20000
        assert (shares - (logits[0] / temperature).softmax(0)).abs().max() < 0.012
    assert draw_tokens(logits.expand(20000, -1), points, top_k=2).unique().tolist() == [0, 1]
    assert draw_tokens(logits.expand(20000, -1), points, top_p=0.6).unique().tolist() == [0]
    assert draw_tokens(logits.expand(20000, -1), points, top_p=0.7).unique().tolist() == [0, 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 20])
def test_limits_of_the_draw_leave_the_most_probable_token(name: str, num_steps: int, model: Model) -> None:
    seeds, labels = rng.sample_seeds(3, torch.arange(4)), torch.arange(4)
    key = "logit_scale" if name == "halton" else "temperature"

    def tokens(**options: Any) -> torch.Tensor:
        drawn: torch.Tensor = built(name, num_steps=num_steps, **options).sample(
            model, labels, grid=GRID, seeds_B=seeds
        )
        return drawn

    greedy = tokens(top_k=1)
    assert torch.equal(tokens(top_p=1e-9), greedy)
    for value in (1e-7, 1e-40, 1e-300):
        sharp = tokens(**{key: 1 / value if name == "halton" else value})
        assert sharp.min() >= 0 and sharp.max() < 17
        # with one step every token sees nothing but masks; later ones see what was revealed, in an order of its own
        assert num_steps > 1 or torch.equal(sharp, greedy)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_few_unknown_tokens_and_none_with_more_steps_than_they_are(name: str, schedule: str, model: Model) -> None:
    known = torch.full((4, 20), 5)
    known[1, 3], known[2, :3] = -1, -1
    known[3] = -1
    options = {"num_steps": 12, "schedule": schedule, "guidance_scale": 2.0, "guidance_schedule": "linear-r"}
    seeds = rng.sample_seeds(0, torch.arange(4))
    tokens = built(name, **options).sample(model, torch.arange(4), grid=GRID, seeds_B=seeds, known_BL=known)
    assert torch.equal(tokens[known >= 0], known[known >= 0]) and tokens.min() >= 0 and tokens.max() < 17
    whole = built(name, **options).sample(
        model, torch.arange(2), grid=GRID, seeds_B=seeds[:2], known_BL=known[:1].repeat(2, 1)
    )
    assert torch.equal(whole, known[:1].repeat(2, 1))


HALTON_SHA = {8: "411ce5960c47d2aa", 16: "a7891aecf281de78", 24: "e87f7cbbe627d776", 32: "fff26f8fdb4bda29"}


@pytest.mark.parametrize("size", HALTON_SHA)
def test_published_halton_orders(size: int) -> None:
    rows = np.array(halton_cells(size, size), dtype="<i8")
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == HALTON_SHA[size]
    if size == 16:
        first = [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3), (14, 8), (1, 14)]
        assert [tuple(row) for row in rows[:8].tolist()] == first


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (3, 11), (64, 64)])
def test_halton_order_covers_every_cell_of_any_grid(grid: tuple[int, int]) -> None:
    cells = halton_cells(*grid)
    assert sorted(cells) == [(y, x) for y in range(grid[0]) for x in range(grid[1])]


def test_settings_of_halton_maskgits_first_version_give_its_values_at_every_step() -> None:
    settings = yaml.safe_load((Path(__file__).parents[2] / "conf/sampler/halton_confidence.yaml").read_text())
    steps, scale, choice = settings["num_steps"], settings["guidance_scale"], settings["choice_temperature"]
    settings.pop("made_for")
    sampler = built(settings.pop("name"), **settings)
    for t in range(steps):
        w = guidance_scale(settings["guidance_schedule"], scale, t, steps, revealed=0.0) - 1
        assert w == pytest.approx(3 * t / (steps - 1), abs=1e-12)
        assert choice * sampler._anneal(t) == pytest.approx(4.5 * (1 - t / (steps - 1)), abs=1e-12)


def test_guidance_within_an_interval_only(model: Model) -> None:
    """ContentDigests it logits are those of the class alone; the exponential schedule goes from 1 to s."""
    labels, seeds = torch.tensor([0, 2]), rng.sample_seeds(1, torch.arange(2))
    state = Decoder(model, labels, GRID, seeds, None, Guidance(3.0, start=0.25, end=0.75), 8)
    left = state.unknown_B - 1
    with torch.no_grad():
        cond = model(state.tokens_BL, labels).flatten(0, 1)
    plain = [torch.allclose(state.logits(state.masked_BL, step, left), cond, atol=1e-5) for step in range(8)]
    assert plain == [True, True, False, False, False, False, True, True]
    growing = [guidance_scale("exponential", 3.0, step, 8, 0.0, power=2.0) for step in range(9)]
    assert growing[0] == 1.0 and growing[-1] == pytest.approx(3.0) and growing == sorted(growing)
    assert growing[4] == pytest.approx(1 + 2 * (np.exp(1.0) - 1) / (np.exp(2.0) - 1))


def test_the_moment_sampler_without_temperature_is_uniform_and_unbiased(model: Model) -> None:
    """A choice temperature without bound chooses positions at random and draws from the model's own distribution."""
    sampler = importlib.import_module("maskgit_core.samplers.moment").Sampler(num_steps=2, choice_temperature=1e6)
    seeds, labels = rng.sample_seeds(5, torch.arange(2000)), torch.zeros(2000, dtype=torch.long)
    firsts: list[torch.Tensor] = []
    original = Decoder.reveal

    def watched(self: Decoder, newly_BL: torch.Tensor, drawn_BL: torch.Tensor) -> None:
        firsts.append((newly_BL, drawn_BL))  # type: ignore[arg-type]
        original(self, newly_BL, drawn_BL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "reveal", watched)
        sampler.sample(model, labels, grid=GRID, seeds_B=seeds)
    newly, drawn = firsts[0]
    assert (newly.float().mean(0) - newly.float().mean()).abs().max() < 0.05
    with torch.no_grad():
        wanted = model(torch.full((1, 20), model.mask_token_id), labels[:1])[0].softmax(-1)
    shares = torch.stack([drawn[newly[:, i], i].bincount(minlength=17) / newly[:, i].sum() for i in range(20)])
    assert (shares - wanted).abs().max() < 0.09


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("entropy", [1, 0, 2]), ("margin", [1, 2, 0])],
)
def test_scored_orders_follow_their_formula(name: str, wanted: list[int]) -> None:
    """Three positions whose entropies and margins differ: even pair, one sure token, one ahead of many."""
    probabilities = torch.tensor([[0.5, 0.5, 1e-9, 1e-9], [0.97, 0.01, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2]])
    module = importlib.import_module(f"maskgit_core.samplers.{name}")
    score = module.negative_entropy if name == "entropy" else module.margin
    found = score(probabilities.log(), torch.zeros(3, dtype=torch.long))
    assert found.argsort(descending=True).tolist() == wanted
