"""Machines that are namespaces of this one: each with its own network, processes, home, /tmp and ssh server.

Needs root, iproute2, openssh-server and rsync: `why_not` says whether it will work. Everything hangs on one process per
host: with it, the kernel ends all of the host's processes and forgets its mounts and links. Only the names of the
network namespaces outlive it, and `close` deletes them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).parent.parent.parent
SHARED = "/mnt/shared"
HOME = "/mnt/home"
NETWORK = "10.77.0"
VENV, BASE = Path(sys.prefix), Path(getattr(sys, "_base_executable", sys.executable)).resolve()
_TOOLS = ("ip", "setpriv", "sshd", "rsync", "unshare", "nsenter", "ssh-keygen", "curl", "pgrep")

_PREFIX = "mermaide"

# The first process of a host. Mounts are private to it; a checkout in /tmp, which they hide, is mounted where it was.
_INIT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/home /mnt/shared /mnt/checkout
mount --bind "$WORK/home" /mnt/home
mount --bind "$SHARED_FOLDER" /mnt/shared
mount --bind "$REPOSITORY" /mnt/checkout
mount --bind "$WORK/hosts" /etc/hosts
mount --bind "$WORK/passwd" /etc/passwd
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --bind "$WORK/tmp" /tmp
if [ ! -d "$REPOSITORY" ]; then
    mkdir -p "$REPOSITORY"
    mount --bind /mnt/checkout "$REPOSITORY"
fi
hostname "$NAME"
touch /tmp/.up
exec /usr/sbin/sshd -D -e -h /mnt/home/.ssh/host_key -o UsePAM=no -o StrictModes=no \
    -o PermitRootLogin=prohibit-password -o PidFile=none -o MaxStartups=100
"""
# Whether the kernel lets this process do all of that: done once, in namespaces that end with it.
_PROBE = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount --bind /run /mnt
hostname probe
ip netns add probe
ip -n probe link add br0 type bridge
ip -n probe link add eth0 type veth peer name port1
"""
_NAMESPACES = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")


def why_not() -> str | None:
    """Why hosts can't be made here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=search) is None]
    if missing:
        return f"needs {', '.join(missing)} (packages iproute2, openssh-server, rsync, curl, procps, util-linux)"
    if REPOSITORY.is_relative_to("/mnt"):
        return "needs a checkout outside /mnt, which each host has for itself"
    elsewhere = [path for path in (VENV.resolve(), BASE) if not path.is_relative_to(REPOSITORY)]
    hidden = [place for place in ("/mnt", "/tmp", "/run") if any(path.is_relative_to(place) for path in elsewhere)]
    if hidden:
        return f"needs a Python outside {hidden[0]}, which each host has for itself"
    tried = subprocess.run([*_NAMESPACES, "--net", "bash", "-c", _PROBE], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"needs the right to make namespaces ({(tried.stderr.strip().splitlines() or ['no word'])[-1]})"
    return None


class Host:
    """One machine.

    Args:
        network: Name of its network namespace.
        name: Its host name.
        address: Its IPv4 address.
        work: Folder of its files outside.
        shared: Folder that all hosts see as /mnt/shared.
    """

    def __init__(self, network: str, name: str, address: str, work: Path, shared: Path) -> None:
        self.network, self.name, self.address, self.work = network, name, address, work
        # It ends with the tests, however those end.
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *("ip", "netns", "exec", network),
            *_NAMESPACES,
            *("bash", "-c", _INIT),
        ]
        places = {"WORK": str(work), "SHARED_FOLDER": str(shared), "REPOSITORY": str(REPOSITORY)}
        environment = {**os.environ, **places, "NAME": name, "HOME": HOME}
        with (work / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        """What its first process says."""
        return (self.work / "sshd.log").read_text()

    def wait(self) -> None:
        """Until its ssh server is there."""
        for _ in range(200):
            if (self.work / "tmp" / ".up").exists():
                return
            assert self._process.poll() is None, self.log
            time.sleep(0.1)
        raise TimeoutError(self.log)

    @property
    def _init(self) -> int:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def popen(self, command: str, **options: object) -> subprocess.Popen[str]:
        """A shell command on this host, as its user types it."""
        enter = ["nsenter", "--target", str(self._init), "--net", "--mount", "--pid", "--uts", "--ipc"]
        environment = {
            "HOME": HOME,
            "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAY_AUTH_MODE": "token",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "TERM": "dumb",
            "LANG": "C.UTF-8",
        }
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [*enter, "bash", "-c", f"cd {shlex.quote(str(REPOSITORY))} || exit; {command}"],
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            **options,
        )

    def run(self, command: str, timeout: float = 300, check: bool = True) -> str:
        """What a command prints, on both channels."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as expired:
                process.kill()
                raise AssertionError(f"{command}: no end in {timeout} s\n{expired.output}") from None
        assert not check or process.returncode == 0, f"{command}: {process.returncode}\n{said}"
        return said

    def pids(self, pattern: str) -> list[int]:
        """Its processes whose command line holds a text, by their ids on this host."""
        found = self.run(f"pgrep -f {pattern!r}", check=False)
        return [int(line) for line in found.split() if line.isdigit()]

    def kill(self, pattern: str) -> int:
        """kill -9 of such processes; how many there were."""
        victims = self.pids(pattern)
        for pid in victims:
            self.run(f"kill -9 {pid}", check=False)
        return len(victims)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Its link is down."""
        _ip("-n", self.network, "link", "set", "eth0", "down")
        try:
            yield
        finally:
            _ip("-n", self.network, "link", "set", "eth0", "up")
            _ip("-n", self.network, "route", "replace", "default", "via", f"{NETWORK}.254")

    def end(self) -> None:
        """Ends it, with all that runs there."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Hosts:
    """Hosts on one network of their own, and a laptop beside.

    Args:
        names: Of the hosts; the last is the laptop.
    """

    def __init__(self, names: Sequence[str]) -> None:
        # Not in /tmp, which each host has for itself.
        self.work = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/var/tmp"))
        self.shared = self.work / "shared"
        self.shared.mkdir()
        _forget_dead()
        self._switch = f"{_PREFIX}{os.getpid()}-switch"
        self._networks: list[str] = []
        self.hosts: dict[str, Host] = {}
        try:
            self._network(self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "addr", "add", f"{NETWORK}.254/24", "dev", "br0")
            _ip("-n", self._switch, "link", "set", "br0", "up")
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / "key")], check=True)
            addresses = {name: f"{NETWORK}.{place}" for place, name in enumerate(names, 1)}
            for name, address in addresses.items():
                self.hosts[name] = self._host(name, address, addresses)
            for host in self.hosts.values():
                host.wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all hosts and takes everything away."""
        for host in self.hosts.values():
            host.end()
        for network in self._networks:
            subprocess.run(["ip", "netns", "delete", network], check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    def _network(self, name: str) -> None:
        _ip("netns", "add", name)
        self._networks.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _host(self, name: str, address: str, addresses: dict[str, str]) -> Host:
        network = f"{_PREFIX}{os.getpid()}-{name}"
        self._network(network)
        port = f"port{address.rpartition('.')[2]}"
        _ip("-n", network, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", network, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", network, "link", "set", "eth0", "up")
        # Ray finds its own address by the default route.
        _ip("-n", network, "route", "add", "default", "via", f"{NETWORK}.254")
        work = self.work / name
        for folder in ("home/.ssh", "tmp"):
            (work / folder).mkdir(parents=True)
        (work / "tmp").chmod(0o1777)
        (work / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in addresses.items()))
        users = re.sub(
            r"^(root:.*:)[^:]*(:[^:]*)$", rf"\1{HOME}\2", Path("/etc/passwd").read_text(), flags=re.MULTILINE
        )
        (work / "passwd").write_text(users)
        ssh = work / "home" / ".ssh"
        shutil.copy(self.work / "key", ssh / "id_ed25519")
        shutil.copy(self.work / "key", ssh / "host_key")
        shutil.copy(self.work / "key.pub", ssh / "authorized_keys")
        provision(work / "home")
        return Host(network, name, address, work, self.shared)


def provision(home: Path) -> None:
    """The environment that `setup_commands` would make from PyPI: the packages of this one, the code that comes later.

    Args:
        home: Of a host.
    """
    at = home / "mermaide_ray" / ".venv"
    site = at / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (at / "bin").mkdir()
    (at / "pyvenv.cfg").write_text(f"home = {BASE.parent}\ninclude-system-site-packages = false\n")
    for name in ("python", "python3"):
        (at / "bin" / name).symlink_to(BASE)
    packages = next(path for path in sys.path if path.endswith("site-packages") and path.startswith(sys.prefix))
    (site / "provisioned.pth").write_text(f"{HOME}/mermaide_ray\n{packages}\n")
    for name, module, function in (
        ("ray", "ray.scripts.scripts", "main"),
        ("mermaide", "mermaide_ray.cli", "run"),
        ("tensorboard", "tensorboard.main", "run_main"),
    ):
        script = at / "bin" / name
        script.write_text(f"#!{HOME}/mermaide_ray/.venv/bin/python\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)
    (at / ".ready").touch()
    # A raylet that was killed is found dead after 2.5 s, not 15, and one without a head leaves after 15 s, not 60.
    (home / ".bashrc").write_text("export RAY_health_check_period_ms=500 RAY_gcs_rpc_server_reconnect_timeout_s=15\n")


def _forget_dead() -> None:
    """Takes away what tests left that were killed: names and files, since everything else ended with them."""
    for kind, place in (("netns", Path("/run/netns")), ("folder", Path("/var/tmp"))):
        for path in place.glob(f"{_PREFIX}*") if place.is_dir() else ():
            owner = re.match(rf"{_PREFIX}(\d+)-", path.name)
            if owner is None or Path(f"/proc/{owner[1]}").exists():
                continue
            if kind == "netns":
                subprocess.run(["ip", "netns", "delete", path.name], check=False)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
