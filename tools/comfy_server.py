"""A real ComfyUI server as a context manager, and the few requests that tests, demo and screenshots need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrap_host import host_version

EventHandler = Callable[[str, dict[str, Any]], None]


PORTS = 3  # that are tried


class ServerError(RuntimeError):
    """The server did not start, died, or refused a request; the message carries the end of its log."""


class WorkflowError(RuntimeError):
    """A workflow was refused or a node raised: ``str()`` is the host's text, ``details`` its whole answer."""

    def __init__(self, message: str, details: dict[str, Any]):
        super().__init__(message)
        self.details = details


class ComfyServer:
    """Runs ComfyUI from ``host_dir`` with everything it writes under ``base_dir``.

    Args:
        host_dir: a ComfyUI tree (has main.py).
        base_dir: see ``host_base.make_base``; only the custom nodes found there are loaded.
        extra_args: further ComfyUI arguments.
        port: a free one when None.
        device_args: ``("--cpu",)`` by default, so that results do not depend on the machine.
        start_timeout: seconds to wait for ``/object_info``; on a crowded machine that takes minutes.
        environment: variables besides this process's.
    """

    def __init__(
        self,
        host_dir: Path | str,
        base_dir: Path | str,
        extra_args: Sequence[str] = (),
        port: int | None = None,
        device_args: Sequence[str] = ("--cpu",),
        start_timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
    ):
        self.host_dir = Path(host_dir).resolve()
        self.base_dir = Path(base_dir).resolve()
        self.extra_args = [*device_args, *extra_args]
        self._chooses_port = port is None
        self.port = _free_port() if port is None else port
        self.start_timeout = start_timeout
        self.environment = dict(environment or {})
        self.log_path = self.base_dir / f"server-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> ComfyServer:
        """Start the process and wait until ``/object_info`` answers. A port that was free and is taken is another's.

        Raises:
            ServerError: it exits, or does not answer within ``start_timeout`` seconds.
        """
        for _ in range(PORTS - 1):
            try:
                return self._start()
            except ServerError:
                if not self._chooses_port or "already in use" not in self.log.lower():
                    raise
            self.port = _free_port()
        return self._start()

    def _start(self) -> ComfyServer:
        custom_nodes = sorted(p.name for p in (self.base_dir / "custom_nodes").iterdir() if p.name != "__pycache__")
        command = [sys.executable, str(Path(__file__).with_name("run_comfyui.py")), str(self.host_dir)]
        command += ["--base-directory", str(self.base_dir), "--port", str(self.port), "--disable-auto-launch"]
        # The default database lies in the ComfyUI folder, which may be the user's; its schema differs by version.
        database = self.base_dir / "user" / f"comfyui-{host_version(self.host_dir)}.db"
        command += ["--database-url", f"sqlite:///{database}"]
        # An extra_model_paths.yaml beside the user's ComfyUI may name custom nodes: load ours only. API nodes need
        # the network.
        command += ["--disable-api-nodes", "--disable-all-custom-nodes", *self.extra_args]
        if custom_nodes:
            command += ["--whitelist-custom-nodes", *custom_nodes]
        # ComfyUI is many small operators: idle OpenMP threads that spin cost more than they save.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        environment = {**quiet, **os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process; harmless when it is not running."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)  # ComfyUI's own way out; it cleans its temp folder
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._check_alive()
            # Its own word comes first: between choosing a port and opening it, another server may have taken it.
            if f"go to: {self.url}" in self.log:
                with contextlib.suppress(OSError):
                    # The port opens only after every custom node is imported, so a short question is enough.
                    self.get("/object_info/KSampler", timeout=30)
                    return
            time.sleep(0.3)
        raise ServerError(f"ComfyUI did not answer within {self.start_timeout:.0f} s.\n{self._log_tail()}")

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise ServerError(f"ComfyUI exited with code {self._process.returncode}.\n{self._log_tail()}")

    def _log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    # -- requests -----------------------------------------------------------------------------------------------

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """GET ``path`` and decode the JSON answer."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any] | None = None, timeout: float = 60.0) -> Any:
        """POST ``body`` as JSON and decode the JSON answer (None when it is empty)."""
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body or {}).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def object_info(self) -> dict[str, Any]:
        """Every node's definition, as the page gets it."""
        return self.get("/object_info")

    def interrupt(self) -> None:
        """Interrupt the running workflow, as the page's stop button does."""
        self.post("/interrupt")

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of a file that an output node reported (``filename``, ``subfolder``, ``type``)."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(file)}", timeout=60) as answer:
            return answer.read()

    def queue(
        self, workflow: dict[str, Any], timeout: float = 600.0, on_event: EventHandler | None = None
    ) -> dict[str, Any]:
        """Run an API-format workflow to its end and return its history entry (``outputs``, ``status``, ...).

        Args:
            workflow: node id -> {"class_type", "inputs"}.
            timeout: seconds for the whole run.
            on_event: called with each message of the server's web socket, e.g. ``("progress", {"value", "max", ...})``.

        Raises:
            WorkflowError: the host refused the workflow, or a node raised or was interrupted.
            TimeoutError: not finished in time (the workflow is interrupted).
            ServerError: the server died on the way.
        """
        return asyncio.run(self._queue(workflow, timeout, on_event))

    async def _queue(self, workflow: dict[str, Any], timeout: float, on_event: EventHandler | None) -> dict[str, Any]:
        import aiohttp

        client_id = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket_,
        ):
            prompt_id = self._submit(workflow, client_id)
            try:
                finished = await asyncio.wait_for(_follow(socket_, prompt_id, on_event), timeout)
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                self.interrupt()
                raise TimeoutError(f"workflow not finished after {timeout:.0f} s.\n{self._log_tail()}") from None
        if not finished:
            self._check_alive()
            raise ServerError(f"the server closed the connection.\n{self._log_tail()}")
        entry = self.get(f"/history/{prompt_id}")[prompt_id]
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                where = f"{data['node_type']} (node {data['node_id']})"
                raise WorkflowError(f"{where}: {data['exception_type']}: {data['exception_message'].strip()}", data)
            if kind == "execution_interrupted":
                raise WorkflowError(f"interrupted at {data.get('node_type')} (node {data.get('node_id')})", data)
        return entry

    def _submit(self, workflow: dict[str, Any], client_id: str) -> str:
        try:
            answer = self.post("/prompt", {"prompt": workflow, "client_id": client_id})
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read() or b"{}")
            raise WorkflowError(_refusal_text(answer), answer) from None
        if answer.get("node_errors"):  # some outputs are refused, and the others run
            raise WorkflowError(_refusal_text(answer), answer)
        return answer["prompt_id"]


async def _follow(socket_: Any, prompt_id: str, on_event: EventHandler | None) -> bool:
    """Read web-socket messages until ``prompt_id`` has left the queue; False when the connection closes first."""
    async for message in socket_:
        if not isinstance(message.data, str):
            continue  # binary messages are preview pictures
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data") or {}
        if on_event is not None:
            on_event(kind, data)
        # Sent after the history entry is written, unlike execution_success.
        if kind == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id:
            return True
    return False


def _refusal_text(answer: dict[str, Any]) -> str:
    error = answer.get("error", {})
    lines = [error.get("message", "") if isinstance(error, dict) else str(error)]
    for node_id, node in answer.get("node_errors", {}).items():
        lines += [f"{node['class_type']} (node {node_id}): {e['message']}: {e['details']}" for e in node["errors"]]
    return "\n".join(line for line in lines if line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
