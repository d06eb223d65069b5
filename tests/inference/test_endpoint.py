"""The openai backend against a server in this file that fails, delays and answers in any order."""

import argparse
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import UserError
from ba_lora.inference.backends import get_backend
from ba_lora.inference.requests import Job, Sampling
from ba_lora.inference.subject import Subject
from tests.inference.letters import EOS, Letters


class Server(ThreadingHTTPServer):
    """Answers /v1/completions with the prompt's letters reversed; `script` says what happens to the first requests."""

    daemon_threads = True

    def __init__(self, script=(), returns_ids=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.returns_ids, self.requests, self.lock = list(script), returns_ids, [], threading.Lock()
        self.now = self.most = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": "letters", "object": "model", "max_model_len": 40}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request | {"authorization": self.headers["Authorization"]})
            fate = self.server.script.pop(0) if self.server.script else 200
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        prompt = request["prompt"]
        time.sleep(0.01 * (len(prompt) % 5))  # so that answers arrive in another order
        with self.server.lock:
            self.server.now -= 1
        if fate != 200:
            self.send(fate, {"error": {"message": f"not now, with {self.headers['Authorization']}"}})
            return
        tokens = [*prompt[::-1], EOS] if isinstance(prompt, list) else None
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "text": Letters().decode(tokens, True) if tokens else prompt[::-1],
        }
        if self.server.returns_ids:
            choice["token_ids"] = tokens
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(prompt) + 1,
            "total_tokens": 2 * len(prompt) + 1,
        }
        self.send(
            200,
            {
                "id": "x",
                "object": "text_completion",
                "created": 0,
                "model": "letters",
                "choices": [choice],
                "usage": usage,
            },
        )


@pytest.fixture
def serve():
    servers = []

    def start(*words, **options):
        servers.append(Server(*words, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask_endpoint(server, prompts, sampling=None, **options):
    pytest.importorskip("openai", reason="needs the package openai")
    args = {"base_url": server.url, "served_model": None, "send": "ids", "max_new_tokens": 8, "batch_size": 4} | options
    subject = Subject(None, Letters(), replace(TEMPLATES["plain"], end="c"), "letters", "letters", None)
    jobs = [Job(prompt, Letters().decode(prompt), seed) for seed, prompt in enumerate(prompts)]
    found = dict(get_backend("openai")(argparse.Namespace(**args), subject, jobs, sampling or Sampling()))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("returns_ids", [True, False])
def test_an_endpoint_is_asked_concurrently_and_answers_keep_their_prompts(serve, prompts, returns_ids):
    server = serve(returns_ids=returns_ids)
    prompts = [prompt[:20] for prompt in prompts]
    found = ask_endpoint(server, prompts)
    assert [completion.text for completion in found] == [Letters().decode(prompt[::-1]) for prompt in prompts]
    assert {completion.finish_reason for completion in found} == {"stop"}
    assert [completion.tokens for completion in found] == [len(prompt) + 1 for prompt in prompts]
    assert 1 < server.most <= 4


def test_a_request_carries_the_ids_as_they_are_and_nothing_is_left_to_the_models_defaults(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "our-key")
    server = serve()
    ask_endpoint(server, [[7, 8, 9]], Sampling(0.8, 0.95, seed=3, stop=("Question:", "a", "b", "c", "d")))
    (request,) = server.requests
    expected = {"model": "letters", "prompt": [7, 8, 9], "temperature": 0.8, "top_p": 0.95, "max_tokens": 8}
    expected |= {
        "stop_token_ids": [EOS],
        "ignore_eos": True,
        "repetition_penalty": 1.0,
        "authorization": "Bearer our-key",
    }
    assert {key: request[key] for key in expected} == expected
    assert request["stop"] == ["Question:", "a", "b", "c", "d"]


def test_text_prompts_send_only_what_every_endpoint_knows_and_are_cut_at_every_stop_string(serve):
    server = serve()
    (found,) = ask_endpoint(server, [[12, 11, 10, 9, 8]], Sampling(stop=("x", "y", "z", "w", "k")), send="text")
    (request,) = server.requests
    assert (request["prompt"], request["stop"]) == ("mlkji", ["x", "y", "z", "w"])
    assert (found.text, found.finish_reason) == ("ij", "stop")
    assert set(request) <= {*"model prompt temperature top_p seed max_tokens stop authorization".split()}


def test_busy_and_failing_endpoints_are_asked_again(serve, prompts):
    server = serve(script=[429, 500, 503])
    found = ask_endpoint(server, [prompt[:20] for prompt in prompts[:3]])
    assert [completion.text for completion in found] == [Letters().decode(prompt[:20][::-1]) for prompt in prompts[:3]]
    assert len(server.requests) == 6


def test_a_refusal_ends_the_run_with_the_endpoints_reason_and_the_remedy(serve):
    with pytest.raises(UserError, match=r"--base_url http://127.* not now.*run the same command again"):
        ask_endpoint(serve(script=[401]), [[7, 8, 9]])


def test_a_key_and_a_password_are_hidden_when_an_endpoint_refuses(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-0123456789")
    server = serve(script=[401])
    server.url = server.url.replace("://", "://user:password99@")
    with pytest.raises(UserError, match=r"--base_url http://\[hidden\]@127") as caught:
        ask_endpoint(server, [[7, 8, 9]])
    assert "secret" not in str(caught.value) and "password99" not in str(caught.value)


def test_an_endpoint_that_is_not_there_is_named(monkeypatch):
    from ba_lora.inference import endpoint

    monkeypatch.setattr(endpoint, "RETRIES", 0)
    server = Server()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="APIConnectionError.*see that it runs"):
        ask_endpoint(server, [[7]])


def test_a_model_that_the_endpoint_does_not_serve_is_refused_with_what_it_has(serve):
    with pytest.raises(UserError, match="--served_model is other; the endpoint .* has: letters"):
        ask_endpoint(serve(), [[7]], served_model="other")


def test_a_prompt_too_long_for_the_endpoint_is_refused_before_it_is_sent(serve):
    server = serve()
    with pytest.raises(UserError, match="40 positions"):
        ask_endpoint(server, [[7] * 40])
    assert not server.requests
