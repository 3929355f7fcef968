"""The weights registry: finding, recording, checking, downloading with resume, and reading hostile files."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskgit_core.errors import WeightsError
from maskgit_core.weights import download, published, registry
from maskgit_core.weights.pickles import read_state_dict

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "PAUSE_S", 0.0)


def register(monkeypatch, **fields):
    entry = registry.Entry(**({"name": "lab/net", "title": "a net", "licence": "MIT", "file": "net.bin"} | fields))
    monkeypatch.setattr(registry, "registry", functools.cache(lambda: {entry.name: entry}))
    return entry


def refusal(call, *args, **kwargs):
    with pytest.raises(WeightsError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- the registry ------------------------------------------------------------------------------------------------------
def test_registry_is_complete_and_typed():
    for entry in registry.registry().values():
        assert entry.title and entry.licence and entry.file
        assert bool(entry.hub) + bool(entry.url) + bool(entry.package) == 1, entry.name
        assert entry.source.startswith(("https://", "pip install"))
        assert len(entry.sha256) in (0, 64)
    assert "openrail++" in registry.registry()["amused/amused-256"].licence


def test_missing_weights_say_what_to_put_where():
    text = refusal(registry.content_digest, "llamagen/vq_ds16_c2i")
    assert text.startswith("llamagen/vq_ds16_c2i: ") and "maskgit weights fetch llamagen/vq_ds16_c2i" in text
    assert "https://huggingface.co/FoundationVision/LlamaGen" in text and str(registry.home()) in text
    assert "did you mean llamagen/vq_ds16_c2i?" in refusal(registry.locate, "llamagen/vq_ds16_c21")
    assert refusal(registry.locate, "no/such.ckpt").startswith("no/such.ckpt: ")


def test_published_digest_needs_no_file():
    entry = registry.registry()["llamagen/vq_ds8_c2i"]
    assert registry.content_digest(entry.name) == entry.sha256


def test_digest_is_that_of_the_content(tmp_path):
    one, two = tmp_path / "one.bin", tmp_path / "elsewhere.bin"
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    assert registry.content_digest(one) == registry.content_digest(str(two)) == hashlib.sha256(b"weights").hexdigest()
    one.write_bytes(b"changed")
    assert registry.content_digest(one) == hashlib.sha256(b"changed").hexdigest()


def test_first_use_is_recorded_and_checked_ever_after(monkeypatch):
    entry = register(monkeypatch, url="https://example.org/net.bin")
    entry.target.parent.mkdir(parents=True)
    entry.target.write_bytes(b"first")
    first = registry.content_digest(entry.name)
    assert registry.verified(entry.name) == entry.target
    entry.target.write_bytes(b"other bytes")
    assert registry.content_digest(entry.name) == first, "the fingerprint stays that of the recorded weights"
    assert "recorded at first use" in refusal(registry.verified, entry.name)


def test_torch_hub_cache_is_looked_at(monkeypatch, tmp_path):
    digest = hashlib.sha256(b"backbone").hexdigest()
    entry = register(monkeypatch, url="https://example.org/x", torch_hub=True, sha256_prefix=digest[:8])
    path = tmp_path / "torch" / "hub" / "checkpoints" / "net.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"backbone")
    assert registry.verified(entry.name) == path
    path.write_bytes(b"backdoor")
    assert "differs from the one published" in refusal(registry.verified, entry.name)


def test_registry_loads_no_torch():
    code = "import sys; import maskgit_core.weights.download as d; d.registry.registry(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- downloads ---------------------------------------------------------------------------------------------------------
BODY = os.urandom(300_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY with ranges; `cut` closes the connection early, `page` answers with a web page."""

    asked: ClassVar[list[str | None]] = []
    cut: ClassVar[list[int]] = []
    page = False
    tag = '"v1"'

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"hub"')
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        if self.path == "/gone":
            self.send_error(404)
            return
        start = int(wanted.partition("=")[2].rstrip("-")) if wanted and self.headers.get("If-Range") == self.tag else 0
        body = b"<html>sign in</html>" if self.page else BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if self.page else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.tag)
        self.end_headers()
        self.wfile.write(body[: self.cut.pop(0)] if self.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.asked, Server.cut, Server.page, Server.tag = [], [], False, '"v1"'
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_fetch_shows_the_licence_resumes_and_records(monkeypatch, server):
    entry = register(monkeypatch, url=f"{server}/net.bin", licence="openrail++", size=len(BODY))
    Server.cut = [100_000]
    said: list[str] = []
    shown: list[tuple[int, int | None]] = []
    path = download.fetch(entry.name, said.append, lambda done, total: shown.append((done, total)))
    assert path.read_bytes() == BODY
    assert "openrail++" in " ".join(said)
    assert Server.asked == [None, "bytes=100000-"], "the second request goes on where the first was cut"
    assert shown[-1] == (len(BODY), len(BODY))
    assert registry.recorded_sha256(entry) == hashlib.sha256(BODY).hexdigest()
    assert {p.name for p in path.parent.iterdir()} == {"net.bin", "recorded.json"}
    said.clear()
    assert download.fetch(entry.name, said.append) == path and not said, "what is here is not fetched again"


def test_a_changed_file_is_begun_again(server, tmp_path):
    part = tmp_path / "x.part"
    Server.cut = [50_000]
    with pytest.raises(OSError, match=r"closed after|IncompleteRead"):
        download.download(f"{server}/x", part)
    assert part.stat().st_size == 50_000
    Server.tag = '"v2"'
    download.download(f"{server}/x", part)
    assert part.read_bytes() == BODY


def test_mirrors_are_tried_in_turn(monkeypatch, server):
    entry = register(monkeypatch, url=f"{server}/gone", mirrors=(f"{server}/net.bin",))
    assert download.fetch(entry.name, lambda line: None).read_bytes() == BODY


def test_wrong_bytes_are_refused_and_removed(monkeypatch, server):
    entry = register(monkeypatch, url=f"{server}/net.bin", sha256="0" * 64)
    assert "differs from the one published" in refusal(download.fetch, entry.name, lambda line: None)
    assert not entry.target.exists() and not list(entry.target.parent.glob("*.part"))


def test_a_web_page_instead_of_the_file(monkeypatch, server):
    entry = register(monkeypatch, url=f"{server}/net.bin")
    Server.page = True
    assert "web page" in refusal(download.fetch, entry.name, lambda line: None)
    assert not entry.target.exists()


def test_fetch_missing_takes_names_only(monkeypatch, server, tmp_path):
    entry = register(monkeypatch, url=f"{server}/net.bin")
    said: list[str] = []
    values = [None, str(tmp_path / "own.ckpt"), entry.name, 3]
    assert download.fetch_missing(values, said.append) == [entry.target]
    assert download.fetch_missing(values, said.append) == [], "the second time nothing is missing"


def test_hub_files_come_through_huggingface_hub(monkeypatch, server):
    """A stand-in answers as the hub does; huggingface_hub itself is real."""
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    entry = register(monkeypatch, hub="lab/net", file="folder/net.bin", sha256=hashlib.sha256(BODY).hexdigest())
    path = download.fetch(entry.name, lambda line: None)
    assert path == entry.target and path.read_bytes() == BODY
    assert {p.name for p in path.parent.iterdir()} == {"net.bin"}, "nothing of the download is left behind"


def test_no_network_says_what_to_put_where(monkeypatch):
    entry = register(monkeypatch, url="http://127.0.0.1:9/net.bin")
    text = refusal(download.fetch, entry.name, lambda line: None)
    assert str(entry.target) in text and f"weights import {entry.name}" in text


def test_no_hub_is_said_at_once(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    entry = register(monkeypatch, hub="lab/net")
    text = refusal(download.fetch, entry.name, lambda line: None)
    assert "Connection refused" in text and str(entry.target) in text


def test_a_second_process_waits_and_takes_what_the_first_fetched(monkeypatch, server, tmp_path):
    entry = register(monkeypatch, url=f"{server}/net.bin")
    said = []

    def say(line):
        said.append(line)
        if "waiting" in line:
            entry.target.parent.mkdir(parents=True, exist_ok=True)
            entry.target.write_bytes(BODY)
            holder.kill()  # the kernel gives the lock of a dead process free

    code = (
        f"from maskgit_core.weights import download; from maskgit_core.weights.registry import Entry\n"
        f"import sys; e = Entry(name={entry.name!r}, title='', licence='', file='net.bin')\n"
        f"with download._alone(e, print): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    asked = download.urllib.request.urlopen
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: pytest.fail("fetched twice"))
    assert download.fetch(entry.name, say).read_bytes() == BODY
    assert any("another process is fetching" in line for line in said)
    holder.wait()
    entry.target.unlink()
    monkeypatch.setattr(download.urllib.request, "urlopen", asked)
    assert download.fetch(entry.name, lambda line: None).is_file()


def test_import_checks_before_it_copies(monkeypatch, tmp_path):
    entry = register(monkeypatch, url="https://example.org/x", sha256=hashlib.sha256(b"right").hexdigest())
    wrong, page, right = tmp_path / "wrong", tmp_path / "page", tmp_path / "right"
    wrong.write_bytes(b"wrong")
    page.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    right.write_bytes(b"right")
    assert "differs" in refusal(download.import_file, entry.name, wrong)
    assert "HTML page" in refusal(download.import_file, entry.name, page)
    assert not entry.target.exists() and wrong.exists()
    assert download.import_file(entry.name, right).read_bytes() == b"right"
    assert registry.locate(entry.name) == entry.target and right.exists()


# -- files -------------------------------------------------------------------------------------------------------------
class Effect:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def damaged(tmp_path):
    """Name -> (file, words of the refusal)."""
    whole = tmp_path / "whole.pt"
    torch.save({"state_dict": TENSORS}, whole)
    old = tmp_path / "old.pt"
    torch.save(TENSORS, old, _use_new_zipfile_serialization=False)
    safe = tmp_path / "safe.safetensors"
    save_file(TENSORS, safe)
    marker = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:  # what torch.jit.save writes
        archive.writestr("program/constants.pkl", b"x")
        archive.writestr("program/data.pkl", b"x")
    cases = {
        "page": (b"\n <!DOCTYPE html><html><body>Log in</body></html>" * 40, "HTML page"),
        "empty": (b"", "0 bytes"),
        "cut zip": (whole.read_bytes()[:-300], "cut off"),
        "cut stream": (old.read_bytes()[:-40], "cut off"),
        "cut safetensors": (safe.read_bytes()[:-8], "cut off"),
        "cut header": (safe.read_bytes()[:40], "fetch it again"),
        "other": (b"GIF89a" + bytes(100), "neither safetensors nor"),
        "call": (pickle.dumps({"state_dict": Effect(os.system, f"touch {marker}")}), "nothing was run"),
        "eval": (pickle.dumps(Effect(eval, f"open({str(marker)!r}, 'w')")), "nothing was run"),
        "getattr": (pickle.dumps([getattr] * 4), "nothing was run"),
        "program": ((tmp_path / "program.pt").read_bytes(), "TorchScript"),
        "no tensors": (None, "no tensors"),
    }
    torch.save({"epoch": 3}, tmp_path / "no tensors")
    for name, (data, words) in cases.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        yield path, words
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": {**TENSORS, "x": Effect(os.system, f"touch {marker}")}}, evil)
    yield evil, "nothing was run"


def test_bad_files_are_refused_in_one_line_and_run_nothing(tmp_path):
    for path, words in damaged(tmp_path):
        text = refusal(read_state_dict, path)
        assert text.startswith(f"{path}: ") and words in text, text
    assert not (tmp_path / "ran").exists()


def test_lightning_checkpoints_are_read_without_lightning(tmp_path, monkeypatch):
    """Unknown classes of callbacks and hyperparameters become stand-ins; tensors come out whole."""
    lab = types.ModuleType("elsewhere_lab")
    exec("class ModelCheckpoint:\n    pass\nclass Config(dict):\n    pass\n", lab.__dict__)
    monkeypatch.setitem(sys.modules, "elsewhere_lab", lab)
    t = torch.arange(12.0).reshape(3, 4)
    config = lab.Config(a=1)
    config.note = "x"
    content = {"state_dict": {"w": t.T, "v": t[1]}, "callbacks": {lab.ModelCheckpoint: {"best": t}}, "hyper": config}
    content |= {"args": argparse.Namespace(lr=1), "path": Path("x"), "seen": {1, 2}, "array": np.float64(3.0)}
    torch.save(content, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, "elsewhere_lab")
    found = read_state_dict(tmp_path / "x.ckpt")
    assert set(found) == {"w", "v"} and torch.equal(found["w"], t.T) and torch.equal(found["v"], t[1])
    assert "elsewhere_lab" not in sys.modules


@pytest.mark.parametrize("modern", [True, False])
def test_containers_count_in_their_order(tmp_path, modern):
    path = tmp_path / "x.pt"
    torch.save(
        {"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}, path, _use_new_zipfile_serialization=modern
    )
    assert read_state_dict(path, ("ema", "model"))["w"].sum() == 2
    assert read_state_dict(path, ("model",))["w"].sum() == 0


def test_converted_once_and_kept_as_safetensors(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {**TENSORS, "loss.net": torch.zeros(9)}}, path)
    first = published.read(str(path), drop=("loss.",))
    kept = list((registry.home() / "converted").glob("*.safetensors"))
    assert set(first) == set(TENSORS) and len(kept) == 1
    assert zipfile.is_zipfile(path) and kept[0].stat().st_size < 1000
    again = published.read(str(path), drop=("loss.",))
    assert all(torch.equal(again[n], TENSORS[n]) for n in TENSORS)
    kept[0].write_bytes(kept[0].read_bytes()[:-5])  # damaged: made again
    assert set(published.read(str(path), drop=("loss.",))) == set(TENSORS)
    torch.save({"state_dict": {"other": torch.zeros(1)}}, path)
    assert set(published.read(str(path))) == {"other"}, "another file is not answered from the old conversion"


def test_filling_is_strict():
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3)})
    published.fill(net, TENSORS, "file")
    assert torch.equal(net["a"].weight, TENSORS["a.weight"]) and not net["a"].weight.requires_grad
    assert refusal(published.fill, net, {"a.bias": TENSORS["a.bias"]}, "file").startswith("file: lacks a.weight [3, 4]")
    assert "b (and 0 more)" in refusal(published.fill, net, {**TENSORS, "b": torch.ones(1)}, "file")
    assert "[4, 3] but" in refusal(published.fill, net, {**TENSORS, "a.weight": torch.ones(4, 3)}, "file")
    assert refusal(published.fill, net, TENSORS, "file", unused={"seen": (5,)}).startswith("file: lacks seen [5]")
    published.fill(net, {**TENSORS, "seen": torch.zeros(5)}, "file", unused={"seen": (5,)})
    assert "int64" in refusal(published.fill, net, {**TENSORS, "a.bias": torch.ones(3).long()}, "file")


def test_unfilled_networks_draw_no_random_numbers():
    before = torch.get_rng_state()
    with published.Unfilled():
        torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Embedding(10, 4), torch.nn.GroupNorm(2, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_home_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    torch.save(TENSORS, path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "file" / "below"))
    assert set(published.read(str(path))) == set(TENSORS)
    assert registry.content_digest(path) == hashlib.sha256(Path(path).read_bytes()).hexdigest()
