"""Kept checkpoints by name: what `train@700` means in a pipeline, in a store, before and after it is there."""

from pathlib import Path
from typing import Any

import pytest
from step_documents import with_facts

from experiments.launching.calls import calls
from experiments.launching.prepare import prepare
from experiments.planning.graph import Graph, Node
from experiments.planning.pipeline import build
from experiments.planning.plan import PlannedStep, Planner
from experiments.running.attempt import Attempt, SupersededError
from experiments.running.binding import load_inputs
from experiments.store.documents import Launch, Manifest, Notes, Request, list_outputs
from experiments.store.kept import kept_folder, kept_steps
from experiments.store.paths import StepFolder
from experiments.store.step_folder import Store, finish, new_attempt
from experiments.training.kept import publish_kept
from maskgit_core.errors import ArtifactError, ConfigError
from maskgit_core.files import write_json

pytestmark = pytest.mark.usefixtures("composed_once")
ASKED = ["experiment=quickstart", "train.keep_every=100"]


def graph_of(store: Path, *arguments: str) -> Graph:
    return build([*ASKED, *arguments, f"paths.store={store}"], digest=lambda key, value, kind: "0" * 64)


def node_of(graph: Graph, name: str) -> Node:
    return next(node for node in graph.nodes.values() if node.name == name)


def planned_of(graph: Graph) -> dict[str, PlannedStep]:
    return {step.node.name: step for step in Planner(graph).plan()}


def finished(graph: Graph, *names: str, **facts: Any) -> None:
    """Marks steps done without running them."""
    for name in names:
        node = node_of(graph, name)
        attempt = StepFolder(node.folder).attempt(new_attempt(node.folder))
        attempt.files.mkdir()
        inputs = {p: Manifest.needed(graph.nodes[p].folder).digest for p in node.upstream}
        notes = Notes(facts={"made_by": name, **facts})
        request = Request.needed(node.folder)
        finish(node.folder, Manifest.of_files(request, attempt.number, attempt.files, notes, inputs))


def prepared(graph: Graph, store: Path) -> None:
    prepare(graph, Planner(graph).plan(), Store(store))


def kept(graph: Graph, step: int, text: str = "weights", number: int = 1) -> None:
    """Publishes a checkpoint as the training would on its way."""
    node = node_of(graph, "train")
    attempt = Attempt(node.folder, number)
    digests = {p: Manifest.needed(graph.nodes[p].folder).digest for p in node.upstream}
    write_json(node.folder / "made_from.json", digests)
    publish_kept(attempt, step, lambda files: (files / "state").write_text(text), {"num_train_steps": step})
    attempt.close()


@pytest.fixture
def running(store: Path) -> Graph:
    """The quickstart with a training that has published its checkpoint of step 200 and goes on."""
    graph = graph_of(store, "sample.model=train@200")
    prepared(graph, store)
    finished(graph, "train_tokenizer", "cache_tokens")
    kept(graph, 200)
    return graph


def test_a_kept_checkpoint_is_a_node_with_an_identity_of_its_own(store: Path) -> None:
    plain, early, late = (
        graph_of(store, *extra) for extra in ([], ["sample.model=train@200"], ["sample.model=train@300"])
    )
    assert len({node_of(g, "sample").fingerprint for g in (plain, early, late)}) == 3
    assert len({node_of(g, "train").fingerprint for g in (plain, early, late)}) == 1, (
        "what is kept re-addresses nothing"
    )
    node = node_of(early, "train@200")
    assert node.folder == kept_folder(node_of(early, "train").folder, 200) and node.upstream == [node.maker]
    swept = graph_of(store, "sample.model=train@200,train@300")
    assert {"train@200", "train@300"} <= {n.name for n in swept.nodes.values()}
    assert len([n for n in swept.nodes.values() if n.request.name == "evaluate"]) == 2


def test_the_end_of_a_training_that_keeps_nothing_is_the_model_itself(store: Path) -> None:
    arguments = ["train.keep_every=null", "train.num_train_steps=250"]
    named, plain = (graph_of(store, *arguments, *extra) for extra in (["sample.model=train@250"], []))
    assert node_of(named, "sample").fingerprint == node_of(plain, "sample").fingerprint


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sample.model=train@250", r"^sample.model: train keeps no checkpoint of step 250 \(train.keep_every is 100,"),
        ("sample.model=train@9900", r"^sample.model: train keeps no checkpoint of step 9900"),
        ("sample.model=train@last", r"^sample.model: found 'train@last'; write STEP@N"),
        ("sample.model=train_tokenizer@100", r"^sample.model: train_tokenizer makes tokenizer, not model"),
        ("sample.model=trian@200", r"^sample.model: there is no step 'trian' .*nothing was run here"),
        ("train.continue_from=train@200", r"^train.continue_from: there is no step 'train' in"),
    ],
)  # fmt: skip
def test_what_is_not_kept_is_refused_by_name(store: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        graph_of(store, value)


def test_what_needs_it_waits_for_the_training_that_publishes_it(store: Path) -> None:
    graph = graph_of(store, "sample.model=train@200")
    planned = list(planned_of(graph).values())
    todo = {call.name: call for call in calls(graph, planned, "uid")}
    train = node_of(graph, "train").fingerprint
    assert "train@200" not in todo and train in todo["sample"].needs
    assert next(s.reason for s in planned if s.node.name == "train@200") == "published by train on its way"


def test_it_is_used_while_the_training_still_runs(store: Path, running: Graph) -> None:
    planned = planned_of(running)
    assert planned["train"].action == "run" and planned["train@200"].action == "done"
    todo = {call.name: call for call in calls(running, list(planned.values()), "uid")}
    assert node_of(running, "train").fingerprint not in todo["sample"].needs
    sample = node_of(running, "sample")
    request, launch = Request.needed(sample.folder), Launch.needed(sample.folder)
    source = load_inputs(store, request, launch)["model"][0]
    assert (source.files / "state").read_text() == "weights" and source.facts["num_train_steps"] == 200
    assert source.fingerprint == node_of(running, "train@200").fingerprint


def test_rebuilt_tokens_or_a_redone_training_make_it_anew(running: Graph) -> None:
    again = {s.node.name: s for s in Planner(running, redo=["train"]).plan()}
    assert again["train@200"].action == "run"
    with_facts(node_of(running, "cache_tokens").folder, made="anew")
    assert planned_of(running)["train@200"].action == "run"


def test_a_finished_training_whose_checkpoint_is_gone_says_so(store: Path) -> None:
    graph = graph_of(store, "sample.model=train@200")
    prepared(graph, store)
    finished(graph, "train_tokenizer", "cache_tokens", "train")
    with pytest.raises(ArtifactError, match=r"train@200 is gone; run again with --redo train"):
        planned_of(graph)


def test_published_again_the_same_stays_and_another_takes_its_place(running: Graph) -> None:
    folder = node_of(running, "train@200").folder
    before = (folder / "manifest.json").stat().st_mtime_ns
    kept(running, 200)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    (folder / "logs").mkdir()
    kept(running, 200, "other weights")
    assert (folder / "files" / "state").read_text() == "other weights"
    assert Manifest.needed(folder).outputs == list_outputs(folder / "files")
    assert kept_steps(node_of(running, "train").folder) == [200]
    assert not list(node_of(running, "train").folder.glob("attempts/0001/kept-*")), "nothing is left lying about"


def test_a_superseded_attempt_keeps_nothing(running: Graph) -> None:
    (node_of(running, "train").folder / "attempts" / "0002").mkdir()
    with pytest.raises(SupersededError):
        kept(running, 300)
    assert kept_steps(node_of(running, "train").folder) == [200]


def test_steps_of_the_store_are_found_by_name_folder_and_fingerprint(store: Path, running: Graph) -> None:
    train = node_of(running, "train")
    names = ["quickstart/train", train.folder.name, train.fingerprint[:8], str(train.folder)]
    prints = set()
    for name in names:
        graph = graph_of(store, f"sample.model={name}@200", "train.lr=1")  # this pipeline's own training is another
        prints.add(node_of(graph, "sample").fingerprint)
    assert prints == {node_of(running, "sample").fingerprint}, "the same checkpoint, however it is called"
    assert planned_of(graph)[f"{name}@200"].action == "done"
    with pytest.raises(ConfigError, match=r"keeps no checkpoint of step 300 \(kept: \[200\], it is not finished\)"):
        graph_of(store, "sample.model=quickstart/train@300", "train.lr=1")
    with pytest.raises(ConfigError, match=r"is not finished; wait for it, or name a kept step"):
        graph_of(store, "sample.model=quickstart/train", "train.lr=1")


def test_a_finished_training_is_extended_with_one_override_and_a_name_of_two_is_refused(store: Path) -> None:
    first = graph_of(store)
    prepared(first, store)
    finished(first, "train_tokenizer", "cache_tokens", "train", num_train_steps=700)
    longer = graph_of(store, "train.continue_from=train@700", "train.num_train_steps=1900")
    train = node_of(longer, "train")
    assert list(train.inputs["continue_from"]) == [node_of(first, "train").fingerprint]
    prepared(longer, store)
    again = graph_of(store, "train.continue_from=train@700", "train.num_train_steps=1900")
    assert node_of(again, "train").fingerprint == train.fingerprint, "asked again it is still the same"
    other = graph_of(store, "train.lr=1")
    prepared(other, store)
    finished(other, "train", num_train_steps=700)
    with pytest.raises(ConfigError, match=r"train means several: \[prenorm-\w+, prenorm-\w+\]; write one of these"):
        graph_of(store, "train.continue_from=train@700", "train.num_train_steps=1900")
    assert node_of(graph_of(store, f"train.continue_from={node_of(first, 'train').folder.name}@700",
                            "train.num_train_steps=1900"), "train").fingerprint == train.fingerprint  # fmt: skip
