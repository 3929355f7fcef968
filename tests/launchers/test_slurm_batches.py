"""From calls to arrays and dependencies, and the texts SLURM gives; no cluster needed."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from submitit import SlurmExecutor, SlurmJob
from submitit.core.utils import FailedJobError

from launchers.calls import Call, Resources
from launchers.cluster.batches import Batch, Submitted, Waits, array_dependency, make_batches, waves
from launchers.cluster.checks import _gpus
from launchers.cluster.job_end import prologue
from launchers.cluster.queue import clean_environment, clock_seconds, read_usage
from launchers.cluster.script import script
from launchers.retry import Retry
from launchers.slurm import Launcher
from maskgit_core.errors import ConfigError


def call(key: str, group: str, needs: tuple[str, ...] = (), **resources: Any) -> Call:
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
        "SBATCH_PARTITION": "p",
        "SQUEUE_PARTITION": "p",
        "SACCT_FORMAT": "f",
        "SCONTROL_ALL": "1",
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


SHOWN = (
    "JobState={state} Restarts=1 ReqNodeList=(null) ExcNodeList=n9 PreemptTime={preempted} "
    "RunTime={ran} TimeLimit={limit}\n   StartTime=2026-01-02T00:00:00\n"
)


def put_scontrol(folder: Path) -> None:
    """A `scontrol` that shows the job in `shown`, knows its requeue, and notes what else it is told in `told`."""
    text = (
        "#!/bin/sh\ncase $1-$2 in\nshow-job) exec cat {0}/shown ;;\nshow-hostnames) echo $3 | tr , '\\n'; exit ;;\n"
        "show-*) exit ;;\nrequeue-*) sed -i s/Restarts=1/Restarts=2/ {0}/shown ;;\nesac\necho $* >> {0}/told\n"
    )
    sinfo = (
        "#!/bin/sh\ncase $* in\n*%m*) echo 3000+ ;;\n*) printf 'n1 idle\\nn2 mixed\\nn9 idle\\nn3 down*\\n' ;;\nesac\n"
    )
    for name, content in (("scontrol", text.format(folder)), ("sinfo", sinfo)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("code", "marks", "policy", "tried", "told"),
    [
        (9, ["why/3-0-1.oom"], {}, "", ["requeue 9_3", "update JobId=9_3 MinMemoryNode=2000"]),
        (1, ["why/3-0-1.own_error", "why/3-0-1.oom"], {}, "", ["requeue 9_3", "update JobId=9_3 MinMemoryNode=2000"]),
        (137, [], {"oom": {"mem_gb": "x8"}}, "", ["requeue 9_3", "update JobId=9_3 MinMemoryNode=3000"]),
        (137, [], {"oom": {"mem_gb": "+1"}}, "", ["requeue 9_3", "update JobId=9_3 MinMemoryNode=2024"]),
        (9, [], {}, "oom oom oom", []),
        (9, [], {"oom": "fail"}, "", []),
        (1, ["why/3-0-1.own_error"], {}, "", []),
        (1, ["why/3-0-1.own_error"], {"own_error": 1}, "", ["requeue 9_3"]),
        (1, ["why/3-0-1.own_error"], {"own_error": 1}, "own_error", []),
        (137, ["why/3-0-1.own_error"], {}, "", []),  # the others were killed with the one that failed
        (2, ["why/3-0-1.refused"], {"own_error": 3}, "", []),
        (74, [], {}, "", ["requeue 9_3", "update JobId=9_3 StartTime=now+120seconds"]),
        (74, [], {"disk_full": "fail"}, "", []),
        (140, [], {}, "", ["requeue 9_3"]),  # USR2 before Python listened
        (5, ["began/none"], {}, "", ["requeue 9_3", "update JobId=9_3 ExcNodeList=n1,n9"]),
        (5, ["began/none"], {}, "before", []),
        (5, ["began/none"], {"node_fail": "fail"}, "", []),
    ],
)
def test_what_is_run_again_and_with_what(
    tmp_path: Path, code: int, marks: list[str], policy: dict[str, Any], tried: str, told: list[str]
) -> None:
    (tmp_path / "shown").write_text(SHOWN.format(state="RUNNING", ran="00:01:00", limit="01:00:00", preempted="None"))
    put_scontrol(tmp_path)
    for name in [*([] if "began/none" in marks else ["began/3-0-1"]), *marks]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "retries").mkdir()
    (tmp_path / "retries" / "3.jsonl").write_text("".join(f'{{"reason": "{word}"}}\n' for word in tried.split()))
    lines = ["sleep() { :; }", *prologue(tmp_path, 0, "scontrol", Retry.read(policy)), f"(exit {code})"]
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9",
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1", "SLURM_MEM_PER_NODE": "1000",
        "SLURMD_NODENAME": "n1", "SLURM_JOB_PARTITION": "p", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    found = (tmp_path / "told").read_text().splitlines() if (tmp_path / "told").exists() else []
    assert found == told, done
    assert (tmp_path / "final" / "3-0").exists() == (not told)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"oom": {"mem": "x2"}}, r"r.oom.mem: unknown key"),
        ({"oom": {"mem_gb": "x1"}}, r'r.oom.mem_gb: found \'x1\'; "x2" for twice as much'),
        ({"timeout": "no"}, r"r.timeout: found 'no'; one of \[continue, fail\]"),
        ({"own_error": -1}, r"r.own_error: found -1; it must be a whole number from 0 to 100"),
        ({"ooms": 1}, r"r.ooms: unknown key; did you mean oom\?"),
        ("x", r"r: found 'x'; it must be a mapping"),
        ({"node_fail": {"exclude": 1}}, r"r.node_fail.exclude: found 1; true or false"),
    ],
)
def test_a_wrong_policy_is_one_line(block: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Retry.read(block, "r")


@pytest.mark.parametrize(
    ("code", "saved", "state", "ran", "limit", "preempted", "ends", "requeued"),
    [
        (75, True, "RUNNING", "00:01:00", "01:00:00", "None", 75, True),
        (143, True, "RUNNING", "00:01:00", "01:00:00", "None", 75, True),  # srun tells of a rank that it ended
        (75, True, "COMPLETING", "00:01:00", "01:00:00", "None", 143, False),  # somebody cancels it
        (75, True, "CANCELLED", "00:01:00", "UNLIMITED", "None", 143, False),
        (75, True, "COMPLETING", "01:00:03", "01:00:00", "None", 75, True),  # at its time limit
        (75, True, "TIMEOUT", "1-00:00:03", "1-00:00:00", "None", 75, True),
        (143, False, "RUNNING", "00:01:00", "01:00:00", "2026-01-02T00:01:00", 75, True),
        (143, False, "RUNNING", "00:01:00", "01:00:00", "2026-01-01T00:01:00", 143, False),  # in an earlier life
        (1, False, "RUNNING", "00:01:00", "01:00:00", "2026-01-02T00:01:00", 1, False),  # an error of its own
        (0, False, "RUNNING", "00:01:00", "01:00:00", "2026-01-02T00:01:00", 0, False),
    ],
)
def test_who_ends_a_job_decides_whether_it_comes_back(
    tmp_path: Path, code: int, saved: bool, state: str, ran: str, limit: str, preempted: str, ends: int, requeued: bool
) -> None:
    """The shell code in a real bash; `scontrol` is a script that shows a job in this state."""
    (tmp_path / "shown").write_text(SHOWN.format(state=state, ran=ran, limit=limit, preempted=preempted))
    put_scontrol(tmp_path)
    for name in ["began/3-0-1", *(["continue/3-0-1"] if saved else [])]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = ["sleep() { :; }", *prologue(tmp_path, 0, "scontrol"), f"(exit {code})"]
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9",
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True)
    assert done.returncode == ends, done
    told = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
    assert told.startswith("requeue 9_3") == requeued, told
    assert (tmp_path / "preempted-3-0-1").exists() == (preempted.startswith("2026-01-02") and code != 0)


def test_a_job_that_ends_before_its_step_leaves_a_note(tmp_path: Path) -> None:
    lines = [*prologue(tmp_path, 0, "chain"), "module load nothing", "cd /nowhere || exit 7"]
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}
    assert subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True).returncode == 7
    note = json.loads((tmp_path / "ends" / "0.script.json").read_text())
    assert (note["code"], note["job"], note["node"]) == (7, "12", "n1") and "before the step began" in note["message"]


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
def test_a_limit_on_parallel_jobs_holds_for_all_arrays_together(at_once: int) -> None:
    """A simulated queue that starts whatever may start never runs more than `at_once`, and runs everything."""
    batches = make_batches([*chains(6), call("all", "all", tuple(f"score{i}" for i in range(6)))], 1000)
    together = waves(batches, at_once)
    assert [b for wave in together for b in wave] == batches
    ended: list[str] = []
    most = 0
    for wave in together:
        left = {b.number: list(b.tasks) for b in wave}
        while any(left.values()):
            running = []
            for number, tasks in left.items():
                ready = [t for t in tasks if all(need in ended for c in t for need in c.needs)]
                running += [(number, task) for task in ready[:at_once]]
            assert running, "nothing can start"
            most = max(most, len(running))
            number, task = running[-1]
            ended += [c.key for c in task]
            left[number].remove(task)
    assert most <= at_once and len(ended) == 22


def test_a_wave_waits_for_the_end_of_the_one_before() -> None:
    batches = make_batches(chains(3), 1000)
    done = Submitted()
    done.add(batches[0], ["10", "11"])
    assert done.array_links([batches[0]]) == [("10", "11")]
    assert done.waits((call("x", "x"),), [("10", "11")]).expression() == "afterany:11"


def test_gpu_types_of_real_sites_are_read() -> None:
    text = "gpu:2080ti:4(S:0-1),gpu:1g.10gb:7,gpu:3090:2,gpu:8,shard:16,gpu:a100_1g.5gb:2(IDX:0,1)"
    assert list(_gpus(text)) == [("2080ti", 4), ("1g.10gb", 7), ("3090", 2), ("", 8), ("a100_1g.5gb", 2)]
    assert list(_gpus("(null)")) == []
    assert Launcher(gpu_type=3090).gpu_type == "3090", "YAML reads it as a number"


def test_a_step_has_a_place_of_its_own(tmp_path: Path) -> None:
    launcher = Launcher(partition="gpu", account="a", qos="q", cpu_partition="cpu", gpu_type="h100", max_time_min=60)

    def options(**wanted: Any) -> str:
        batch = Batch(0, "t", Resources(**wanted), ((call("t", "t"),),))
        return script(launcher, batch, tmp_path, "n", tmp_path)

    assert "#SBATCH --partition=cpu\n" in options() and "--time=60" in options()
    assert "#SBATCH --partition=gpu\n" in options(gpus_per_task=1, timeout_min=500) and "--time=60" in options(
        timeout_min=500
    )
    own = options(gpus_per_task=2, partition="big", account="b", qos="r", constraint="c", gpu_type="2080ti")
    for line in ("partition=big", "account=b", "qos=r", "constraint=c", "gpus-per-node=2080ti:2"):
        assert f"#SBATCH --{line}\n" in own


def test_options_of_sbatch_take_numbers_flags_and_null(tmp_path: Path) -> None:
    launcher = Launcher(sbatch={"nice": 100, "exclusive": True, "requeue": False, "export": None, "mail-type": "FAIL"})
    text = script(launcher, Batch(0, "t", Resources(), ((call("t", "t"),),)), tmp_path, "n", tmp_path)
    for line in ("nice=100", "exclusive", "mail-type=FAIL"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --requeue" not in text and "#SBATCH --export" not in text


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"image": "a.sif", "runtime": "docker"}, r"launcher.container.runtime: found 'docker'"),
        ({"image": "a.sif", "mount": []}, r"launcher.container.mount"),
        ({"mounts": ["/data"]}, r"launcher.container.image: missing"),
        ({"image": "a.sif", "mounts": "/data"}, r"launcher.container.mounts: found '/data'; write a list"),
    ],
)
def test_a_container_is_checked(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Launcher(container=block)


def test_containers_of_both_kinds(tmp_path: Path) -> None:
    folder, code = tmp_path / "store" / "slurm" / "uid" / "000", tmp_path / "code"
    batch = Batch(0, "t", Resources(gpus_per_task=1), ((call("t", "t"),),))
    block = {"image": "/i.sif", "mounts": ["/data", "/a:/b"]}
    apptainer = script(Launcher(container=block), batch, folder, "n", code)
    store = tmp_path / "store"
    start = f"apptainer exec --nv --bind {store} --bind {code} --bind /data --bind /a:/b /i.sif python -u -m"
    assert start in apptainer
    pyxis = script(Launcher(container={**block, "runtime": "pyxis"}), batch, folder, "n", code)
    assert f"--container-image=/i.sif --container-mounts={store}:{store},{code}:{code},/data:/data,/a:/b" in pyxis


def test_the_parts_of_submitit_that_are_not_public_are_as_they_were() -> None:
    """Scripts are written by a subclass of its executor; a new version must be looked at before it is allowed."""
    assert version("submitit").startswith("1.5.")
    assert isinstance(inspect.getattr_static(SlurmExecutor, "_submitit_command_str"), property)
    assert list(inspect.signature(SlurmExecutor._make_submission_file_text).parameters) == ["self", "command", "uid"]
    assert inspect.getattr_static(SlurmExecutor, "parameters", None) is None, "an attribute of the instance"


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


@pytest.mark.parametrize("module", ["json", "no_such_module"])
def test_submitit_reads_the_result_of_a_task(tmp_path: Path, module: str) -> None:
    """A batch folder answers to submitit's own words."""
    one = {"key": "k", "name": "probe", "target": "launchers.probe:probe", "args": [str(tmp_path), [module]],
           "log": str(tmp_path / "log.txt"), "progress": ""}  # fmt: skip
    batch = {"ranks": 1, "nodes": 1, "cpus_per_task": 1, "max_idle_restarts": 3, "tasks": [[one], [one]]}
    (tmp_path / "batch.json").write_text(json.dumps(batch))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12",
                   "SLURM_ARRAY_TASK_ID": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "launchers.cluster.task", str(tmp_path)], env=environment)
    job: SlurmJob[list[str]] = SlurmJob(tmp_path, "12_1")
    assert job.done()
    if module == "json":
        assert done.returncode == 0 and job.result() == ["probe"] and job.exception() is None
    else:
        assert done.returncode == 1
        with pytest.raises(FailedJobError, match="probe"):
            job.result()
