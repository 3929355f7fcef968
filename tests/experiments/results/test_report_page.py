"""The report: self-contained, escaped, the same bytes for the same inputs."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from tracked_store import TrackedStore, lines, write_scores

from experiments.config.specs import Input
from experiments.results import html
from experiments.running.attempt import Attempt
from experiments.stages import report
from experiments.store.documents import Code, Launch, Record, Request

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Seen(HTMLParser):
    """Tags and attributes a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.depth, self.text = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *a) for a in attrs]

    def handle_data(self, data):
        self.text.append(data)


def see(page: str) -> Seen:
    seen = Seen()
    seen.feed(page)
    return seen


def made(tmp_path, name="evaluate", evil="fine"):
    """Finished upstream steps whose every outside string is `evil`."""
    store = TrackedStore(tmp_path / "store")
    model = store.step("train", "train", "model", {"note": evil})
    own = store.attempt(model)
    lines(own / "journal.jsonl", [(i, {"loss": 1 / (i + 1), "tokens_per_s": i, "acc/low": i}) for i in range(9)])
    (own / "files" / "model.bin").write_bytes(b"w")
    store.done(model)
    scores = store.step(name, "evaluate", "scores", {"n": 5, "text": evil}, [store.steps[0]["fingerprint"]])
    own = store.attempt(scores)
    (own / "files" / "grid.png").write_bytes(PNG)
    protocol = {"name": evil, "reference": evil, "num_samples": 5}
    write_scores(own / "files", evil, protocol, **{"fd": 2.5, evil: 1.0})
    store.done(scores, headline={"name": "fd", "value": 2.5, "protocol": protocol}, shown=["grid.png"])
    inputs = []
    for entry, folder in zip(store.steps, (model, scores), strict=True):
        (folder / "files").symlink_to("attempts/0001/files")
        request, launch = Request.needed(folder), Launch(name=name, step=name, experiment="toy", pipeline="p")
        code, packages = Code(commit=evil, dirty=True), {"torch": evil}
        Record(request=request, launch=launch, code=code, packages=packages, started=0.0, ended=1.0).write(folder)
        facts = {"class_names": [evil]}
        inputs.append(
            Input(entry["name"], entry["kind"], folder, entry["fingerprint"], facts, {"x": evil}, {"train.lr": evil})
        )
    return inputs


def written(tmp_path, inputs, further=(), **options) -> tuple[str, dict[str, bytes]]:
    model, scores = inputs
    attempt = Attempt(tmp_path, 1)
    report.run(
        attempt, scores=[scores, *further], tokenizer_scores=[], samples=[], models=[model], tokenizers=[], **options
    )
    attempt.close()
    files = {p.name: p.read_bytes() for p in sorted(attempt.files.iterdir())}
    return files["report.html"].decode(), files


def test_everything_is_on_the_page_and_nothing_is_loaded(tmp_path):
    page, files = written(tmp_path / "report", made(tmp_path), title="A title")
    seen = see(page)
    text = " ".join(seen.text)
    assert "A title" in text and "2.5" in text and "fd" in text and "grid.png" in text
    addresses = [value for _, name, value in seen.attributes if name in ("src", "href")]
    assert addresses and all(a.startswith("data:image/") for a in addresses)
    assert "script" not in seen.tags and "link" not in seen.tags
    assert {"curves_model.png", "curves_model.svg", "report.html", "01-evaluate-grid.png"} == set(files)
    assert files["01-evaluate-grid.png"] == PNG


def test_strings_from_outside_stay_text(tmp_path):
    page, _ = written(tmp_path / "report", made(tmp_path, evil=EVIL), title=EVIL)
    seen = see(page)
    assert "script" not in seen.tags
    assert not [a for a in seen.attributes if a[1].startswith("on")]
    assert all(value.startswith("data:image/") for _, name, value in seen.attributes if name == "src")
    assert EVIL in " ".join(seen.text)


def test_same_inputs_same_bytes(tmp_path):
    inputs = made(tmp_path)
    assert written(tmp_path / "one", inputs)[1] == written(tmp_path / "two", inputs)[1]


def test_a_pipeline_without_scores_still_has_a_page(tmp_path):
    attempt = Attempt(tmp_path, 1)
    report.run(attempt, scores=[], tokenizer_scores=[], samples=[], models=[], tokenizers=[])
    attempt.close()
    assert "<h1>Report</h1>" in (attempt.files / "report.html").read_text()


def test_a_value_the_template_needs_and_does_not_get_is_an_error():
    with pytest.raises(UndefinedError, match="title"):
        html.render("table", header=[], rows=[], notes=[])


@pytest.mark.parametrize("path", sorted(html.TEMPLATES.glob("*.jinja")), ids=lambda p: p.name)
def test_templates_escape_everything_and_load_nothing(path):
    text = path.read_text()
    assert "|safe" not in text.replace(" ", "") and "autoescape" not in text
    assert not re.search(r"<script|<link|\bon\w+=|href=(?!\"{{ [\w.]+ }}\")|https?:", text)
    assert re.findall(r'src="([^"]*)"', text) in ([], ["{{ picture.uri }}"])


def test_a_sweep_becomes_a_table_and_a_chart_with_its_front(tmp_path):
    store, inputs = TrackedStore(tmp_path / "store"), []
    for scale in (1.0, 2.0):
        for temperature in (3, 4):
            params = {"sampler.scale": scale, "sampler.temperature": temperature}
            folder = store.step(f"evaluate[{scale},{temperature}]", "evaluate", "scores", params, (), params)
            numbers = {"fid": 10 - scale + temperature / 9, "inception_score": 100 * scale + temperature, "psnr": 1.0}
            write_scores(store.attempt(folder) / "files", "p", {"reference": "val"}, **numbers)
            store.done(folder, headline={"name": "fid", "value": 1.0, "protocol": {"name": "p"}})
            (folder / "files").symlink_to("attempts/0001/files")
            identity = store.steps[-1]["fingerprint"]
            inputs.append(Input("evaluate", "scores", folder, identity, {}, {}, params))
    attempt = Attempt(tmp_path / "report", 1)
    report.run(attempt, scores=inputs, tokenizer_scores=[], samples=[], models=[], tokenizers=[])
    attempt.close()
    page = (attempt.files / "report.html").read_text()
    assert page.count("evaluate [scale=") >= 4 and "fid over inception_score; dashed" in page
    assert (attempt.files / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "sweep.svg" in attempt.notes.shown


def test_scores_made_by_different_code_are_said_not_to_be_compared(tmp_path):
    model, scores = made(tmp_path)
    again = made(tmp_path / "again", name="evaluate_again", evil="other")[1]
    page, _ = written(tmp_path / "same", [model, scores], further=[again])
    assert "different code" not in page
    for item, code in ((scores, "a"), (again, "b")):
        record = Record.needed(item.folder)
        science = {"maskgit_core.samplers.halton": {"sha256": code, "code": code * 64}}
        replace(record, science_files=science).write(item.folder)
    page, _ = written(tmp_path / "unlike", [model, scores], further=[again])
    told = "Not to be compared: these scores were made by different code (maskgit_core.samplers.halton)."
    assert told in " ".join(see(page).text)
