"""A temporary Prefect server for a run on this machine that has no server of its own.

Prefect would start one too, but only when the flow is called, and it imports the whole server into
the run's process as well. Started here it comes up while the run's own imports go on, which halves
the time to the first step. It lives in a session of its own, so that Ctrl-C reaches the run and
not the server that the run reports its end to, and it ends when the run's process is gone, however
that ended: its standard input closes.

The database is Prefect's own (`PREFECT_HOME`), so runs show in `prefect server start` later.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

STARTUP_SECONDS = 300.0
"""A fresh database migrates first: 15 s on a laptop, more on a loaded machine."""

GRACE_SECONDS = 10.0
"""For the server's last writes once the run is gone."""


def server_is_configured() -> bool:
    """Whether the user has told Prefect about a server, or might have.

    Read without importing Prefect (which takes two seconds); where a settings file leaves doubt,
    the answer is yes, and Prefect decides by itself.
    """
    if "PREFECT_API_URL" in os.environ or Path("prefect.toml").exists():
        return True
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    for path in (profiles, Path(".env")):
        if path.is_file() and "PREFECT_API_URL" in path.read_text(errors="replace"):
            return True
    pyproject = Path("pyproject.toml")
    if not pyproject.is_file():
        return False
    try:
        return "prefect" in tomllib.loads(pyproject.read_text()).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


class LocalServer:
    """A Prefect server in a child process; `start`, then `wait` before the first use."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self.api_url = f"http://127.0.0.1:{self._port}/api"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; it stops by itself once this process has ended."""
        environment = {
            **os.environ,
            # What Prefect sets for its own temporary server: no UI, no scheduler, no clean-up.
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "PREFECT_UI_ENABLED": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.local_server", str(self._port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            RuntimeError: it ended, or does not answer in time; with its last words.
        """
        assert self._process is not None
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip().splitlines()
        faults = [line for line in words if "Error" in line] or words or ["no answer"]
        raise RuntimeError(f"the temporary Prefect server did not start: {faults[-1]}")


def _end_with_parent() -> None:
    """Standard input ends when the run's process does."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _serve(port: int) -> None:
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Two servers that migrate one fresh database at once break each other.
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    home.mkdir(parents=True, exist_ok=True)
    alone = (home / "rlhf-server.lock").open("w")
    fcntl.flock(alone, fcntl.LOCK_EX)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            alone.close()

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )
    Server(config).run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
