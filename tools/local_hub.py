"""A server on this machine that speaks the part of the Hugging Face hub's API that sends and fetches repositories.

    python -m tools.local_hub            then HF_ENDPOINT=http://127.0.0.1:8999 HF_TOKEN=any maskgit push ...

For trying `maskgit push` without an account; repositories are kept in memory until Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalHub(BaseHTTPRequestHandler):
    """Repositories in memory; every file is sent inside its commit."""

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, bool]

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, value: object, code: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), code, {"Content-Type": "application/json"})

    def _bytes(self, body: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body, parts = self._body(), self.path.split("?")[0].strip("/").split("/")
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.private[name] = bool(asked.get("private"))
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif parts == ["api", "validate-yaml"]:
            self._answer({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer({"files": told})
        elif "commit" in parts:
            name = "/".join(parts[2:4])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"success": True, "commitOid": "a" * 40,
                          "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{'a' * 40}"})  # fmt: skip
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.repositories.get(name)
        if files is None:
            self._bytes(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and "tree" in parts:
            self._answer([{"type": "file", "path": p, "size": len(d), "oid": self._tag(d)} for p, d in files.items()])
        elif parts[0] == "api":
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            self._answer({"id": name, "sha": "a" * 40, "siblings": siblings, "private": self.private[name],
                          "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        else:
            data = files.get("/".join(parts[4:]))
            if data is None:
                self._bytes(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})
            else:
                self._bytes(data, 200, {"ETag": f'"{self._tag(data)}"', "X-Repo-Commit": "a" * 40})

    do_HEAD = do_GET

    @staticmethod
    def _tag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def local_hub(port: int = 0) -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of a fresh hub and its repositories: name -> file -> content."""
    handler = type("Handler", (LocalHub,), {"repositories": {}, "private": {}, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.repositories
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8999)
    with contextlib.suppress(KeyboardInterrupt), local_hub(parser.parse_args().port) as (address, _):
        print(f"HF_ENDPOINT={address}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
