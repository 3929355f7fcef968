"""An HTTP proxy that loses replies: the server has committed, and whoever asked never hears of it."""

import http.client
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LossyProxy:
    """`with LossyProxy(port, share=0.3, seed=1) as proxy: proxy.uri`.

    The first reply to each kind of write is lost, then a random `share` of the replies to all writes. `lost` counts
    them by path.
    """

    def __init__(self, port: int, share: float, seed: int) -> None:
        self.lost: Counter[str] = Counter()
        self._chance, self._lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on()

            def do_POST(self) -> None:
                self._pass_on()

            do_PATCH = do_PUT = do_DELETE = do_POST

            def _pass_on(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    there.request(self.command, self.path, body, dict(self.headers))
                    reply = there.getresponse()
                    data = reply.read()  # the server is done with it
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    there.close()
                if self.command != "GET" and proxy._loses(self.path):
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._share = share
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _loses(self, path: str) -> bool:
        kind = "/".join(path.partition("?")[0].split("/")[:6])
        if kind.endswith("search"):
            return False  # writes nothing
        with self._lock:
            lost = self.lost[kind] == 0 or self._chance.random() < self._share
            self.lost[kind] += lost
        return lost

    def __enter__(self) -> "LossyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
