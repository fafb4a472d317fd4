"""Pushing a folder, against a server on the loopback that speaks the hub's protocol as far as an upload goes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmdora.errors import MmdoraError
from mmdora.export.hub import check_repo, preview, push


class Hub(BaseHTTPRequestHandler):
    """Takes a repository, says that every file goes into the commit itself, keeps the commit."""

    asked: list[tuple[str, str, Any]]
    allowed = "Bearer hf_test"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parsed = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.asked.append(("POST", self.path, parsed))
        if self.headers.get("Authorization") != self.allowed:
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self._answer(200, {"url": f"http://{self.headers['Host']}/someone/model", "id": "someone/model"})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in parsed[0]["files"]]
            return self._answer(200, {"files": files})
        commit = {
            "commitUrl": f"http://{self.headers['Host']}/someone/model/commit/abc",
            "commitOid": "abc",
            "success": True,
        }
        return self._answer(200, commit)

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path, None))
        self._answer(
            200, {"id": "someone/model", "sha": "0" * 40, "siblings": [], "private": True, "xetEnabled": False}
        )

    def _answer(self, code: int, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("push") / "exported"
    made.mkdir()
    save_file({"weight": torch.ones(2)}, made / "model.safetensors")
    (made / "README.md").write_text("# a card\n")
    (made / "optimizer.pt").write_bytes(b"never sent")
    (made / ".hidden").write_text("never sent")
    return made


PUSHES = """
import os, sys
from pathlib import Path
from mmdora.errors import MmdoraError
from mmdora.export.hub import push
for token in ("hf_test", "hf_wrong"):
    os.environ["HF_TOKEN"] = token
    try:
        print("pushed", push(Path(sys.argv[1]), "someone/model"))
    except MmdoraError as error:
        print("refused", error)
"""


@pytest.fixture(scope="module")
def pushes(folder: Path) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """What two pushes print, of which the second has a wrong token, and what the server was asked.

    They run in a process of their own, because the hub's client reads its settings when it is imported.
    """
    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(folder.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    env = {k: v for k, v in os.environ.items() if k not in ("http_proxy", "https_proxy")} | settings
    command = [sys.executable, "-c", PUSHES, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), handler.asked


def test_a_folder_is_one_commit_without_pickles(folder: Path, pushes: tuple[list[str], list[Any]]) -> None:
    (printed, *_), asked = pushes
    assert printed.startswith("pushed ") and "/someone/model/commit/abc" in printed
    created = next(body for method, path, body in asked if path == "/api/repos/create")
    assert created[0].get("visibility") == "private" or created[0].get("private") is True, created
    (commit,) = (body for method, path, body in asked if "/commit/" in path)
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"
    }
    assert files == {name: (folder / name).read_bytes() for name in ("model.safetensors", "README.md")}


def test_a_preview_names_what_a_push_sends(folder: Path) -> None:
    shown = preview(folder, "someone/model")
    assert "someone/model (private" in shown and "# a card" in shown
    assert [line.split()[-1] for line in shown.splitlines() if " bytes " in line] == ["README.md", "model.safetensors"]


def test_a_wrong_token_is_one_line(pushes: tuple[list[str], list[Any]]) -> None:
    (_, refused), _ = pushes
    assert refused.startswith("refused ")
    assert "401" in refused and "hf auth login" in refused and "hf_wrong" not in refused


def test_what_is_refused_before_anything_is_sent(folder: Path, tmp_path: Path) -> None:
    for name in ("model", "a/b/c", "../x", "someone/", "https://huggingface.co/someone/model"):
        with pytest.raises(MmdoraError, match="expected USER/NAME"):
            check_repo(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmdoraError, match="holds no safetensors"):
        push(tmp_path / "empty", "someone/model")
    with pytest.raises(MmdoraError, match="cannot reach the hub"):
        push(folder, "someone/model")  # the tests run in offline mode
