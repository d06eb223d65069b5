"""A real HTTP server on the loopback that answers chat completions from a script and records the requests."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedJudge:
    """`script(body, nth)` returns the reply to the `nth` request (from 1) with these messages: a text, or (status, body text).

    `asked` holds the bodies of all requests, `most_at_once` the highest number of concurrent ones. `delay`: seconds before a reply.
    """

    def __init__(self, script, delay: float = 0.0):
        self.script, self.delay = script, delay
        self.asked, self.counts = [], {}
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def reply(self, body: dict) -> tuple[int, str]:
        with self.lock:
            self.asked.append(body)
            name = json.dumps(body["messages"])
            self.counts[name] = nth = self.counts.get(name, 0) + 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        answer = self.script(body, nth)
        with self.lock:
            self.at_once -= 1
        return answer if isinstance(answer, tuple) else (200, completion(answer))


def completion(text: str | None) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "scripted", "choices": [choice]})


@contextmanager
def serve(judge: ScriptedJudge):
    """The address of a server that answers like `judge`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            status, text = judge.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "1")  # tests need not wait
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:  # the client has given up
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
