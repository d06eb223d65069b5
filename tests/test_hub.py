"""Uploading a run, against a local server that implements the part of the hub's protocol that an upload needs."""

import base64
import json
import subprocess
import sys
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest

from ba_lora.errors import UserError
from ba_lora.hub import push, push_after, reserve
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from tests.common import command, finished_run

ROOT = Path(__file__).parent.parent


class Hub(ThreadingHTTPServer):
    """The requests to the hub in order, the files it received, and its write permission."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked, self.files, self.created, self.broken, self.read_only = [], {}, None, False, False


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({}, 403 if self.server.read_only else 200)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.broken:
            return self.answer({"error": "the disk is full"}, 500)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer({"url": f"{huggingface_hub.constants.ENDPOINT}/someone/adapter"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path == "/api/models/someone/adapter/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        assert self.path == "/api/models/someone/adapter/commit/main"
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.files |= {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        self.answer(
            {"commitUrl": f"{huggingface_hub.constants.ENDPOINT}/someone/adapter/commit/1", "commitOid": "1" * 40}
        )

    def answer(self, value, status=200):
        self.server.asked.append((self.command, self.path, self.headers["Authorization"]))
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    yield server
    server.shutdown()
    server.server_close()


def test_training_ends_with_the_adapter_and_its_card_on_the_hub(hub, tmp_path):
    words = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "32", "--progress", "false"]
    arguments = parse([*words, "--output_dir", str(tmp_path / "run"), "--push_to_hub", "someone/adapter"])
    folder = train(arguments)
    assert hub.created == {"name": "adapter", "organization": "someone", "visibility": "private"} and not hub.files
    push_after(folder, arguments)
    assert not any(str(ROOT).encode() in content for content in hub.files.values())
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "checksums.json"]
    listed = json.loads(hub.files["checksums.json"])["files"]  # no path of this machine is uploaded
    assert listed == {name: sha256(hub.files[name]).hexdigest() for name in hub.files if name.startswith("adapter")}
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert json.loads(hub.files["checksums.json"])["base_model"] == "tiny"
    for name in ("README.md", "adapter_model.safetensors"):
        assert hub.files[name] == (folder / "adapter" / name).read_bytes()
    assert {token for *_, token in hub.asked if token} == {"Bearer hf_of_the_test"}
    assert "push_to_hub" not in json.loads((folder / "run.json").read_text())["config"]


def test_no_path_of_this_machine_is_uploaded_and_one_line_says_so(hub, tmp_path, caplog):
    run = finished_run(tmp_path / "run", model=str(tmp_path / "models" / "my-base"))
    push(run, "someone/adapter")
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "my-base"
    assert len(caplog.messages) == 1 and "the base model 'my-base' is not from the hub" in caplog.messages[0]
    assert not any(str(tmp_path).encode() in content for content in hub.files.values())
    caplog.clear()
    push(finished_run(tmp_path / "other", model="someone/base"), "someone/adapter")
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    assert not caplog.messages


def test_a_card_that_was_edited_is_uploaded_as_it_is(hub, tmp_path):
    run = finished_run(tmp_path / "run")
    (run / "adapter" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push(run, "someone/adapter")
    assert hub.files["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_what_the_hub_refuses_is_one_line_before_training(hub, tmp_path, monkeypatch):
    reserve("someone/adapter", public=True)
    assert hub.created["visibility"] == "public"
    hub.read_only = True
    with pytest.raises(UserError, match="someone/adapter cannot be written on .*403") as error:
        reserve("someone/adapter")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="'adapter' does not name a repository of the hub; give it as USER/NAME"):
        reserve("adapter")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a write token of the hub; run 'hf auth login' or set HF_TOKEN"):
        reserve("someone/adapter")


def test_a_failed_upload_keeps_the_run_and_says_how_to_upload_it_later(hub, tmp_path, caplog):
    run = finished_run(tmp_path / "run")
    hub.broken = True
    with pytest.raises(UserError) as error:
        push(run, "someone/adapter")
    assert str(error.value).endswith(f"it is complete, upload it with python -m ba_lora.hub {run} someone/adapter")
    assert "was not uploaded" in str(error.value) and "\n" not in str(error.value)
    arguments = parse(["--output_dir", str(run), "--push_to_hub", "someone/adapter"])
    push_after(run, arguments, last=False)
    assert caplog.messages[-1] == str(error.value)
    with pytest.raises(UserError, match="was not uploaded"):
        push_after(run, arguments)
    assert (run / "adapter" / "adapter_model.safetensors").exists()


def test_offline_mode_is_refused_in_one_line_before_anything_is_written(tmp_path):
    words = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="cannot be reached in offline mode; unset HF_HUB_OFFLINE"):
        train(parse([*words, "--push_to_hub", "someone/adapter"]))
    assert not (tmp_path / "run").exists()


def test_the_command_uploads_a_finished_run(hub, tmp_path, monkeypatch):
    run = finished_run(tmp_path / "run")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", huggingface_hub.constants.ENDPOINT)
    words = [sys.executable, "-m", "ba_lora.hub", str(run), "someone/adapter"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == f"{huggingface_hub.constants.ENDPOINT}/someone/adapter"
    assert "README.md" in hub.files
    (run / "run.json").unlink()
    done = command("-m", "ba_lora.hub", str(run), "someone/adapter")
    assert done.returncode == 2 and done.stderr.strip() == (
        f"error: {run} is not a run folder (it has no run.json); give the --output_dir of a training run"
    )
