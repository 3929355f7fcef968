"""From calls to arrays and dependencies, and the texts SLURM gives; no cluster needed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from launchers.calls import Call, Resources
from launchers.cluster.batches import Batch, Submitted, Waits, array_dependency, make_batches
from launchers.cluster.queue import clean_environment, clock_seconds, read_usage
from launchers.cluster.script import script
from launchers.cluster.task import may_requeue
from launchers.slurm import Launcher


def call(key: str, group: str, needs: tuple[str, ...] = (), **resources: int) -> Call:
    return Call(key, key, "m:f", [], Path("log"), needs, group, Resources(**resources))


def chains(items: int, **resources: int) -> list[Call]:
    """items x (train -> sample -> score), and a report over all scores."""
    made = []
    for i in range(items):
        made.append(call(f"train{i}", "train", ("cache",), **resources))
        made.append(call(f"sample{i}", "sample", (f"train{i}",)))
        made.append(call(f"score{i}", "score", (f"sample{i}", "statistics")))
    random.Random(items).shuffle(made)
    return [*made, call("report", "report", tuple(f"score{i}" for i in range(items))),
            call("cache", "cache"), call("statistics", "statistics")]  # fmt: skip


def submit(batches: list[Batch], links: int = 1) -> tuple[Submitted, dict[int, str | None]]:
    """As the launcher would, with ids 100, 101, ...; returns the ids and each batch's one expression."""
    done, sizes, expressions = Submitted(), {}, {}
    for batch in batches:
        waits = [done.waits(task) for task in batch.tasks]
        expressions[batch.number] = array_dependency(batch, waits, sizes)
        ids = [str(100 * (1 + batch.number) + link) for link in range(links)]
        sizes |= dict.fromkeys(ids, len(batch.tasks))
        done.add(batch, ids)
    return done, expressions


@pytest.mark.parametrize(("items", "limit"), [(1, 10), (7, 100), (7, 3), (100, 1000)])
def test_every_call_is_in_one_task_after_what_it_needs(items: int, limit: int) -> None:
    calls = chains(items)
    batches = make_batches(calls, limit)
    place = {c.key: b.number for b in batches for task in b.tasks for c in task}
    assert sorted(place) == sorted(c.key for c in calls)
    assert all(place[need] < place[c.key] for c in calls for need in c.needs)
    assert all(len(b.tasks) <= limit for b in batches)
    trains = [b for b in batches if b.group == "train"]
    assert len(trains) == -(-items // limit)  # one array a stage, split at the cluster's limit only


def test_item_i_waits_for_item_i_by_one_expression_an_array() -> None:
    batches = make_batches(chains(5), 1000)
    done, expressions = submit(batches)
    by_group = {b.group: b for b in batches}
    train = done.links["train0"][0].partition("_")[0]
    assert expressions[by_group["sample"].number] == f"aftercorr:{train}"
    score = expressions[by_group["score"].number]
    assert score is not None and score.startswith("afterok:") and ",aftercorr:" in score
    for i, (one,) in enumerate(by_group["sample"].tasks):
        assert done.waits([one]).well == ((f"{train}_{i}",),)


def test_items_in_another_order_wait_one_by_one() -> None:
    """Items 2 and 4 of 6 are missing downstream: arrays differ in size, so each element gets its own expression."""
    calls = [call(f"train{i}", "train") for i in range(6)]
    calls += [call(f"sample{i}", "sample", (f"train{i}",)) for i in (2, 4)]
    batches = make_batches(calls, 1000)
    done, expressions = submit(batches)
    assert expressions[1] is None
    assert [done.waits(task).expression() for task in batches[1].tasks] == ["afterok:100_2", "afterok:100_4"]


def test_a_packed_task_waits_for_ends_not_for_success() -> None:
    batches = make_batches(chains(4, pack=2), 1000)
    done, _ = submit(batches)
    sample = next(b for b in batches if b.group == "sample")
    first = done.waits(sample.tasks[0])
    assert first.well == () and first.expression().startswith("afterany:")
    train = next(b for b in batches if b.group == "train")
    assert [len(task) for task in train.tasks] == [2, 2]


def test_chains_of_jobs() -> None:
    assert Waits(well=(("1", "2", "3"),)).expression() == "afterok:1?afterok:2?afterok:3"
    # "any of" and "all of" cannot stand in one expression: the last link of each must have ended.
    assert Waits(well=(("1", "2"), ("3", "4"))).expression() == "afterany:2,afterany:4"
    assert Waits(well=(("1",), ("3", "4")), ended=(("7",),)).expression() == "afterok:1,afterany:7,afterany:4"


def test_a_job_gets_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_CPU_BIND": "x",
        "SLURM_CONF": "/c",
        "RANK": "3",
        "PMIX_RANK": "1",
        "HOME": "/h",
        "SBATCH_ACCOUNT": "a",
    }
    assert clean_environment(given) == {"SLURM_CONF": "/c", "HOME": "/h", "SBATCH_ACCOUNT": "a"}


def test_the_script_says_what_was_asked(tmp_path: Path) -> None:
    launcher = Launcher(
        partition="gpu", gpu_type="h100", account="me", setup=["module load x"], sbatch={"mail-type": "FAIL"}
    )
    wanted = Resources(ranks=8, nodes=2, cpus_per_task=6, gpus_per_task=1, mem_gb=100, timeout_min=8)
    batch = Batch(0, "train", wanted, tuple((call(str(i), "train"),) for i in range(3)))
    text = script(launcher, batch, tmp_path, "train.x.0", tmp_path / "co de")
    for line in ("--array=0-2%3", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=6", "--gpus-per-node=h100:4",
                 "--mem=102400M", "--time=8", "--partition=gpu", "--account=me", "--mail-type=FAIL", "--hold",
                 "--kill-on-invalid-dep=yes", "--requeue", "--signal=USR2@120"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text, line
    assert "--kill-on-bad-exit=1" in text and "srun" in text and "--cpus-per-task=6" in text.rpartition("srun")[2]
    assert text.index("module load x") < text.index("cd '") < text.index("srun --")
    short = script(launcher, Batch(0, "t", Resources(timeout_min=1), batch.tasks), tmp_path, "n", tmp_path)
    assert "--signal=USR2@15" in short and "gpus" not in short


def test_who_ends_a_job_decides_whether_it_comes_back() -> None:
    assert may_requeue("JobState=RUNNING Reason=None RunTime=00:01:00 TimeLimit=01:00:00")
    assert not may_requeue("JobState=COMPLETING RunTime=00:01:00 TimeLimit=01:00:00")
    assert not may_requeue("JobState=CANCELLED RunTime=00:01:00 TimeLimit=UNLIMITED")
    assert may_requeue("JobState=COMPLETING RunTime=01:00:03 TimeLimit=01:00:00")
    assert may_requeue("JobState=TIMEOUT RunTime=1-00:00:03 TimeLimit=1-00:00:00")


def test_accounting_is_read() -> None:
    text = (
        "12_0|COMPLETED|0:0|n1|100|60|01:20.5|2||4G|1\n12_0.batch|COMPLETED|0:0|n1|100||00:00.5|2|10K||1\n"
        "12_0.0|COMPLETED|0:0|n1|100||01:20|2|2048M||1\n12_[1-3]|PENDING|0:0|||60||2||4G|1\n"
        "13|CANCELLED by 0|0:0|n2|1|UNLIMITED|00:00|1||100M|1\n"
    )
    found = read_usage(text)
    assert sorted(found) == ["12_0", "13"]
    used = found["12_0"]
    assert (used.max_rss_mb, used.mem_mb, used.limit_seconds, used.cpu_seconds) == (2048.0, 4096.0, 3600.0, 80.5)
    assert used.cpu_share == pytest.approx(0.4025)
    assert found["13"].state == "CANCELLED" and found["13"].limit_seconds is None
    assert clock_seconds("1-02:03:04") == 93784.0


def test_what_comes_after_shares_waits_for_their_end_and_for_its_needs_to_go_well() -> None:
    shares = [call(f"step/{i}", "step", ("cache",)) for i in range(3)]
    whole = Call("step", "step", "m:f", [], Path("log"), ("cache",), "step", after=tuple(c.key for c in shares))
    batches = make_batches([whole, *shares, call("cache", "cache")], 1000)
    assert [(b.group, len(b.tasks)) for b in batches] == [("cache", 1), ("step", 3), ("step", 1)]
    _, expressions = submit(batches)
    assert expressions[2] == "afterok:100,afterany:200_0,afterany:200_1,afterany:200_2"
