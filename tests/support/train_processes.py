"""Runs the stage `train` in real processes, as a launcher would, some of which are killed or told to stop.

`python train_processes.py PLAN.json`: torch is imported once, then each launch of the plan forks its processes.
A launch is {"folder", "number", "world", "tokens", "model", "values", "kill_at", "term_at"}; with "critic_of", the
folder of a finished training, it is a critic of that model that is trained (stage `train_critic`): `kill_at` is [step,
"before" or "after"] at which rank 0 kills itself with SIGKILL, `term_at` a step before which every rank gets SIGTERM,
`signal_after` [seconds, signal] for all ranks, at whatever they are then.
Exit codes of all processes are printed as a list per launch.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from stage_calls import call

from experiments.config.specs import Input, ModelSpec
from experiments.running.attempt import Attempt, Stopped
from experiments.running.signals import StopFlag
from experiments.stages import train, train_critic
from experiments.store.documents import Request
from maskgit_core.training.trainer import Trainer


def tokens_input(folder: str) -> Input:
    return Input("cache_tokens", "tokens", Path(folder), "f" * 64, {}, {})


def one_process(launch: dict[str, Any], rank: int) -> int:
    torch.set_num_threads(1)
    original = Trainer.train_step

    def watched(self: Trainer, pieces: Any) -> None:
        step = self.step
        if launch.get("term_at") == step:
            os.kill(os.getpid(), signal.SIGTERM)
        if launch.get("kill_at") == [step, "before"] and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, pieces)
        if launch.get("kill_at") == [step, "after"] and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.train_step = watched
    stop = StopFlag.installed()
    attempt = Attempt(Path(launch["folder"]), launch["number"], rank=rank, world_size=launch["world"], stop=stop)
    tokens, model = tokens_input(launch["tokens"]), ModelSpec(launch["model"].pop("name"), launch["model"])
    try:
        if "critic_of" in launch:
            generator = Input("train", "model", Path(launch["critic_of"]), "e" * 64, {}, {})
            call(train_critic, attempt, model=generator, tokens=tokens, **launch["values"])
        else:
            call(train, attempt, tokens=tokens, model=model, **launch["values"])
    except Stopped as stopped:
        return 75 if stopped.requeue else 143
    finally:
        attempt.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def run(launch: dict[str, Any]) -> list[int]:
    module = "experiments.stages.train"  # a kept checkpoint's request is made from that of its training
    request = Request(fingerprint="f" * 64, stage="train", module=module, version=1, kind="model", config={})
    request.create(Path(launch["folder"]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(launch["world"]):
        child = os.fork()
        if child == 0:
            if launch["world"] > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": launch["world"], "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
            code = 1
            try:
                code = one_process(launch, rank)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    if "signal_after" in launch:
        seconds, number = launch["signal_after"]
        time.sleep(seconds)
        for child in children:
            os.kill(child, number)  # a child that has ended is not yet waited for, so its id is still its own
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps([run(launch) for launch in json.loads(Path(sys.argv[1]).read_text())]))
