"""What the checks of dashboards and alerts share: Prometheus as a program, and the queries of dashboards.

It decides nothing: what is right is said in check-watched and check-scrape.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

INFRA = pathlib.Path(__file__).resolve().parent
DASHBOARDS = ("service", "fleet", "cost")
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "darkroom"


class Trouble(Exception):
    """Something that these checks need is missing, or does not do what it should."""


def run(*command, **options):
    """The finished process, with what it printed as text."""
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
                          **options)


def program(name):
    """The path of `prometheus` or `promtool`: that on the PATH, else the one of Debian's package in the cache."""
    found = shutil.which(name)
    if found:
        return found
    kept = CACHE / "prometheus" / name
    if not kept.exists():
        _unpack()
    return str(kept)


def _unpack():
    """Debian's package, unpacked and not installed: that needs no root, and starts no service."""
    kept = CACHE / "prometheus"
    kept.mkdir(parents=True, exist_ok=True)
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Trouble(f"there is no prometheus on the PATH, and no {tool} to fetch it with: install Prometheus 2.42 or newer, with promtool")
    with tempfile.TemporaryDirectory(dir=kept) as directory:
        staging = pathlib.Path(directory)
        # Root's apt hands downloads to a user that may not write here.
        apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["apt-get", "-q"]
        got = run(*apt, "download", "prometheus", cwd=staging)
        if got.returncode:
            # Lists of packages that are missing or old; those of the system are not touched.
            (staging / "lists/partial").mkdir(parents=True)
            (staging / "archives/partial").mkdir(parents=True)
            apt += ["-o", f"Dir::State::lists={staging}/lists", "-o", f"Dir::Cache={staging}"]
            got = run(*apt, "update", cwd=staging)
            if not got.returncode:
                got = run(*apt, "download", "prometheus", cwd=staging)
        packages = list(staging.glob("prometheus_*.deb"))
        if got.returncode or len(packages) != 1:
            raise Trouble(f"apt-get cannot download prometheus:\n{got.stdout}")
        unpacked = run("dpkg-deb", "-x", packages[0], staging / "package")
        if unpacked.returncode:
            raise Trouble(f"dpkg-deb cannot unpack {packages[0].name}:\n{unpacked.stdout}")
        for name in ("promtool", "prometheus"):
            # Who comes second replaces it by the same bytes.
            os.replace(staging / "package/usr/bin" / name, kept / name)


def free_port():
    """A port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **parameters):
        """The `data` of an answer.

        Raises Trouble with Prometheus' words when it answers with an error.
        """
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            try:
                text = json.loads(text)["error"]
            except (ValueError, KeyError):
                pass
            raise Trouble(text) from None
        except (OSError, ValueError) as error:
            raise Trouble(f"{path}: {error}") from None


@contextlib.contextmanager
def prometheus(configuration):
    """Runs one with that configuration file, and data of its own, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="darkroom-prometheus-") as directory:
        log = pathlib.Path(directory) / "log"
        address = f"127.0.0.1:{free_port()}"
        command = [
            program("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address={address}", "--log.level=warn",
        ]
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=directory)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
                        if answer.status == 200:
                            break
                if process.poll() is not None:
                    raise Trouble(f"prometheus ended with {process.returncode}:\n{log.read_text(encoding='utf-8')}")
                if time.monotonic() > deadline:
                    raise Trouble(f"prometheus is not ready after a minute:\n{log.read_text(encoding='utf-8')}")
                time.sleep(0.1)
            yield Prometheus(address)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Query:
    """One query of a dashboard, and where it stands."""

    def __init__(self, dashboard, panel, reference, expression):
        self.dashboard, self.panel, self.reference, self.expression = dashboard, panel, reference, expression

    def __str__(self):
        return f"{self.dashboard}.json, {self.panel!r}, {self.reference}"

    def filled(self, rate_interval="5m", whole_range="1h"):
        """With Grafana's variables replaced, for all models."""
        text = self.expression
        for name, value in (("$__rate_interval", rate_interval), ("$__range", whole_range), ("$model", ".*")):
            text = text.replace(name, value)
        if "$" in text:
            raise Trouble(f"{self}: the variable in {text!r} is not known here")
        return text


def panels(dashboard):
    """All panels, those within rows too."""
    for panel in dashboard.get("panels", []):
        yield panel
        yield from panel.get("panels", [])


def read_dashboard(infra, name):
    """The dashboard as a value."""
    return json.loads((infra / "dashboards" / f"{name}.json").read_text(encoding="utf-8"))


def queries(infra=INFRA):
    """Every query of every dashboard, those of annotations too."""
    for name in DASHBOARDS:
        dashboard = read_dashboard(infra, name)
        for panel in panels(dashboard):
            for target in panel.get("targets", []):
                yield Query(name, panel.get("title", ""), target.get("refId", ""), target.get("expr", ""))
        for annotation in dashboard.get("annotations", {}).get("list", []):
            yield Query(name, annotation.get("name", ""), "annotation", annotation.get("target", {}).get("expr", ""))
