"""Which points are shipped: every forwarder, whenever it reads, ships the same ones, and each of them once."""

import json

from hypothesis import given
from hypothesis import strategies as st
from tracked_store import lines

from experiments.tracking.points import first_points


def folder(tmp_path, count=1):
    paths = []
    for number in range(1, count + 1):
        own = tmp_path / f"{number:04d}"
        own.mkdir(parents=True)
        (own / "start.json").write_text(json.dumps({"time": number * 1000.0}))
        paths.append(own / "journal.jsonl")
    return paths


def shipped(journals, marks=None, limit=1000):
    return [p for batch in first_points(journals, marks or {}, limit) for p in batch.points]


def test_of_a_relogged_step_the_first_point_is_shipped(tmp_path):
    one, two = folder(tmp_path, 2)
    lines(one, [(i, {"loss": 1.0}) for i in range(6)], 1_000_000)
    lines(two, [(i, {"loss": 2.0}) for i in range(4, 9)], 2_000_000, resumed_at=4)
    assert [(p.step, p.value) for p in shipped([one, two])] == [(i, 1.0 if i < 6 else 2.0) for i in range(9)]


def test_a_zombies_points_are_not_shipped_whenever_one_looks(tmp_path):
    one, two = folder(tmp_path, 2)
    lines(one, [(0, {"loss": 1.0})], 1_500_000)
    before = shipped([one, two])
    lines(two, [(1, {"loss": 2.0})], 2_100_000, resumed_at=1)
    lines(one, [(1, {"loss": 666.0})], 2_200_000)
    assert before + shipped([two]) == shipped([one, two])


@given(
    data=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 7)), max_size=40),
    cuts=st.lists(st.integers(0, 2000), max_size=4),
    limit=st.integers(1, 9),
)
def test_from_any_offset_it_goes_on_with_exactly_the_rest(tmp_path_factory, data, cuts, limit):
    """Shipping in rounds, each killed after any number of batches, sends what one undisturbed round would."""
    (path,) = folder(tmp_path_factory.mktemp("points"))
    lines(path, [(step, {f"m{i}": float(step) for i in range(width)}) for step, width in data], 1_000_000)
    want = shipped([path])
    marks: dict[str, int] = {}
    got: list = []
    for cut in cuts:
        for number, batch in enumerate(first_points([path], marks, limit)):
            assert len(batch.points) <= limit
            got += batch.points
            if number == cut % 5:
                break  # killed here: the batch arrived, its marks did not
            marks = dict(batch.marks)
    got += shipped([path], marks, limit)
    assert list(dict.fromkeys(got)) == want
    assert len({(p.metric, p.step) for p in want}) == len(want)


def test_offsets_of_a_finished_round_leave_nothing_to_send(tmp_path):
    (path,) = folder(tmp_path)
    lines(path, [(i, {"a": 1.0, "b": 2.0}) for i in range(100)], 1_000_000)
    marks: dict[str, int] = {}
    for batch in first_points([path], {}, 7):
        marks = batch.marks
    assert shipped([path], marks) == [] and marks == {"0001": path.stat().st_size}
