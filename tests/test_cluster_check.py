"""Clusters' files: those shipped are right once they are filled in, and each mistake planted in one is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mermaide_ray.cli import main
from mermaide_ray.cluster_check import PLACEHOLDER, check

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted(path.relative_to(REPOSITORY / "cluster") for path in (REPOSITORY / "cluster").rglob("*.yaml"))
FILLED = {
    "CHANGE_ME_head_address": "10.0.0.1",
    "CHANGE_ME_worker_address": "10.0.0.2",
    "CHANGE_ME_user": "ann",
    "CHANGE_ME_shared_folder": "/mnt/shared/results",
    "CHANGE_ME_security_group": "sg-0123",
    "CHANGE_ME_bucket": "my-bucket",
    "CHANGE_ME_project": "my-project",
    "CHANGE_ME_jump_host": "ann@jump.example.org",
    "CHANGE_ME_account": "myaccount",
    "CHANGE_ME_registry": "registry.example.org/ann",
    "CHANGE_ME_storage_class": "nfs",
    "CHANGE_ME_operator_namespace": "kuberay-system",
}


def filled(text: str) -> str:
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    return text


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token that nobody else can read."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def root(tmp_path: Path, home: Path) -> Path:
    """A checkout whose cluster files are filled in, and which may be changed."""
    root = tmp_path / "checkout"
    root.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name not in ("cluster", "constraints.txt"):
            (root / path.name).symlink_to(path)
    (root / "constraints.txt").write_text((REPOSITORY / "constraints.txt").read_text())
    for path in (*SHIPPED, Path("Dockerfile")):
        target = root / "cluster" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(filled((REPOSITORY / "cluster" / path).read_text()))
    return root


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_shipped_file_is_right_once_it_is_filled_in(name: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "cluster" / name
    assert [str(finding) for finding in check(file)] == []
    assert main(["cluster", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: nothing to find fault with\n"


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_shipped_file_is_refused_with_its_placeholders_left_in(
    name: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = REPOSITORY / "cluster" / name
    assert main(["cluster", "check", str(file)]) == 2
    captured = capsys.readouterr()
    left = re.findall(rf"^[^#\n]*{PLACEHOLDER}", file.read_text(), re.MULTILINE)
    assert 1 <= len(left) <= 5
    assert "must be filled in, got the placeholder" in captured.out
    assert f"mermaide: error: {file} must be right in every point, got" in captured.err
    assert captured.err.count("\n") == 1


MISTAKES = [
    # What Ray itself finds.
    ("local.yaml", "cluster_name: mermaide-local", "cluster_nmae: mermaide-local", "must pass Ray's own validation"),
    ("local.yaml", "auth:\n", "auth:\n  ssh_port: 2222\n", "auth: must pass Ray's own validation"),
    ("aws.yaml", "head_node_type: head", "head_node_type: haed", "must pass Ray's own validation"),
    ("aws.yaml", "resources: {CPU: 16}", "resources: {CPU: 1.5}", "must pass Ray's own validation"),
    ("aws.yaml", "  worker:\n    min_workers: 0", "  worker:\n    min_workers: 21", "must pass Ray's own validation"),
    # Who gets in.
    (
        "local.yaml",
        "RAY_AUTH_MODE=token RAY_enable",
        "RAY_enable",
        "head_start_ray_commands: must start Ray with RAY_A",
    ),
    ("gcp.yaml", "--dashboard-host=127.0.0.1 ", "", "head_start_ray_commands: must start the dashboard with"),
    ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "--dashboard-host=127.0.0.1, got 0.0.0.0"),
    ("gcp.yaml", "\nhead_start_ray_commands:", "\ninitialization_commands:", "(Ray's default, as the file gives none)"),
    ("aws.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token", "", "file_mounts: must bring the token to the nodes"),
    ("aws.yaml", "SecurityGroupIds: [sg-0123]", "", "head.node_config.SecurityGroupIds: must name a security group"),
    ("gcp.yaml", "networkInterfaces:", "labels:", "networkInterfaces: must name a subnetwork of your own"),
    ("azure.yaml", "use_internal_ips: true", "use_internal_ips: false", "provider.use_internal_ips: must be true"),
    ("kuberay/raycluster.yaml", "{mode: token}", "{mode: disabled}", "spec.authOptions: must be {mode: token}"),
    ("kuberay/raycluster.yaml", "kind: NetworkPolicy", "kind: Secret", None),  # the dashboard is on loopback there
    ("kuberay/rayjob.yaml", "kind: NetworkPolicy", "kind: Secret", "dashboard-host: must be 127.0.0.1, or a NetworkPo"),
    ("kuberay/rayjob.yaml", "ClusterIP", "LoadBalancer", "serviceType: must be ClusterIP"),
    (
        "kuberay/raycluster.yaml",
        "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kuberay-system}}",
        "namespaceSelector: {}",
        "NetworkPolicy spec.ingress[1].from.namespaceSelector: must name one namespace by kubernetes.io/metadata.name",
    ),
    (
        "kuberay/rayjob.yaml",
        "kubernetes.io/metadata.name: kuberay-system",
        "team: ml",
        "namespace by kubernetes.io/metadata.name, got team: ml: a pod of any other would only have to take the same",
    ),
    (
        "kuberay/rayjob.yaml",
        "podSelector: {matchLabels: {app: mermaide}}\n  policyTypes",
        "podSelector: {matchLabels: {app: other}}\n  policyTypes",
        "podSelector: must select the pods of spec.rayClusterSpec.headGroupSpec, whose labels are app: mermaide, got",
    ),
    (
        "kuberay/rayjob.yaml",
        "        template:\n          metadata: {labels: {app: mermaide}}",
        "        template:\n          metadata: {labels: {app: worker}}",
        "must select the pods of spec.rayClusterSpec.workerGroupSpecs[0], whose labels are app: worker, got app: merm",
    ),
    ("kuberay/rayjob.yaml", "[Ingress]", "[Egress]", "NetworkPolicy spec.policyTypes: must hold Ingress"),
    (
        "kuberay/rayjob.yaml",
        "    - from: [{p",
        "    - ports: [{p",
        "ingress[0].from: must say who reaches Ray",
    ),
    (
        "kuberay/rayjob.yaml",
        "[{podSelector: {matchLabels: {app: mermaide}}}]",
        "[{podSelector: {}}]",
        "ingress[0].from.podSelector: must select pods by their labels, got all of a namespace",
    ),
    (
        "kuberay/rayjob.yaml",
        "[{podSelector: {matchLabels: {app: mermaide}}}]",
        "[{ipBlock: {cidr: 0.0.0.0/0}}]",
        "ingress[0].from.ipBlock.cidr: must bound the addresses, got 0.0.0.0/0",
    ),
    # Secrets.
    ("aws.yaml", "export RAY_AUTH_MODE=token", "export RAY_AUTH_TOKEN=abc", "setup_commands[2]: must hold no secret"),
    ("aws.yaml", "rsync_exclude: [", "rsync_exclude: [AKIAABCDEFGHIJKLMNOP, ", "rsync_exclude[0]: must hold no secret"),
    # Versions.
    ("aws.yaml", "ray:2.60.0-py311-cpu", "ray:2.59.0-py311-cpu", "docker.image: must hold Ray 2.60.0 as constraints"),
    ("aws.yaml", "ray:2.60.0-py311-cpu", "ray:2.60.0", "docker.image: must name its Python"),
    ("aws.yaml", "ray:2.60.0-py311-cpu", "ray:2.60.0-py310-cpu", "docker.image: must have Python >= 3.11, got 3.10"),
    ("aws.yaml", "ray:2.60.0-py311-cpu", "ray:2.60.0-py313-cpu", "docker.image: must have this machine's Python 3.11"),
    ("gcp.yaml", "ray:2.60.0-py311-cpu", "ray:latest", "docker.image: must name a fixed version"),
    ("gcp.yaml", "ray:2.60.0-py311-cpu", "ray", "docker.image: must name a fixed version"),
    ("kuberay/raycluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.59.0", "spec.rayVersion: must be 2.60.0"),
    ("kuberay/raycluster.yaml", "mermaide_ray:0.1.0", "mermaide_ray:0.0.9", "must hold this package's version 0.1.0"),
    ("../constraints.txt", "ray==2.60.0", "ray==2.61.0", "constraints.txt: must pin a Ray that the package takes"),
    ("../constraints.txt", "ray==2.60.0", "ray==2.60.9", "constraints.txt: must pin the Ray that starts the cluster"),
    ("../constraints.txt", "ray==2.60.0", "rya==2.60.0", "constraints.txt: must pin ray"),
    ("Dockerfile", "ray:2.60.0-py311-cpu", "ray:2.58.0-py311-cpu", "cluster/Dockerfile: must hold Ray 2.60.0"),
    ("aws.yaml", "--constraint constraints.txt ", "", "setup_commands: must install with --constraint"),
    ("aws.yaml", "\nsetup_commands:", "\ninitialization_commands:", "setup_commands: must be given: Ray's default"),
    (
        "azure.yaml",
        "export RAY_AUTH_MODE",
        "export PYTHONPATH=/x RAY_AUTH_MODE",
        "setup_commands: must set no PYTHONPATH",
    ),
    # The head, and what costs money.
    ("local.yaml", "--num-cpus=0 ", "", "head_start_ray_commands: must start the head with --num-cpus=0"),
    ("local.yaml", "RAY_enable_autoscaler_v2=0 ", "", "must set RAY_enable_autoscaler_v2=0"),
    ("aws.yaml", "{CPU: 0}", "{CPU: 4}", "available_node_types.head.resources.CPU: must be 0, got 4"),
    (
        "aws.yaml",
        "  worker:\n    min_workers: 0",
        "  worker:\n    min_workers: 2",
        "worker.min_workers: must be 0, got 2",
    ),
    ("gcp.yaml", "idle_timeout_minutes: 10", "", "idle_timeout_minutes: must say when"),
    ("gcp.yaml", "\nmax_workers: 20", "\n", "max_workers: must bound what the cluster can cost"),
    (
        "gcp.yaml",
        "cache_stopped_nodes: false",
        "cache_stopped_nodes: true",
        "provider.cache_stopped_nodes: must be false",
    ),
    ("aws.yaml", "{MarketType: spot}", "{}", "InstanceMarketOptions: must be {MarketType: spot}"),
    ("gcp.yaml", "provisioningModel: SPOT", "provisioningModel: STANDARD", "node_config.scheduling: must be"),
    ("azure.yaml", "priority: Spot", "priority: Regular", "priority: must be Spot"),
    ("kuberay/rayjob.yaml", 'num-cpus: "0"', 'num-cpus: "2"', 'rayStartParams.num-cpus: must be "0", got 2'),
    ("kuberay/rayjob.yaml", "minReplicas: 0", "minReplicas: 1", "workerGroupSpecs[0].minReplicas: must be 0, got 1"),
    ("kuberay/rayjob.yaml", "minReplicas: 0", "", "spec.rayClusterSpec: must be what Ray's autoscaler can read"),
    ("kuberay/raycluster.yaml", "ling: true", "ling: false", "spec.enableInTreeAutoscaling: must be true"),
    ("kuberay/raycluster.yaml", ", idleTimeoutSeconds: 600", "", "idleTimeoutSeconds: must say when an idle worker"),
    # Where results go.
    ("local.yaml", "results: /mnt/shared/results", "results: results", "metadata.results: must say where results go"),
    ("gcp.yaml", "results: gs://", "results: /", "metadata.results: must say where results go (a folder below gs://)"),
    ("azure.yaml", "  results: ", "  place: ", "metadata.results: must say where results go (a folder below abfs"),
    (
        "aws.yaml",
        "IamInstanceProfile: {Name: mermaide-worker}",
        "",
        "may write to the bucket and no more, got the head's",
    ),
    (
        "aws.yaml",
        "IamInstanceProfile: {Name: mermaide-head}",
        "",
        "IamInstanceProfile: must name a role that may start",
    ),
    ("gcp.yaml", "serviceAccounts:", "labels:", "serviceAccounts: must name an account"),
    (
        "kuberay/rayjob.yaml",
        "persistentVolumeClaim: {claimName: mermaide-results}",
        "emptyDir: {}",
        "Claim for results",
    ),
    # What the shell never sees, and what isn't there.
    ("aws.yaml", "  - ray stop", "  - ray stop --force # all of it", "[0]: must be quoted where it holds ' #'"),
    (
        "local.yaml",
        "~/mermaide_ray/LICENSE: LICENSE",
        "x: LICENCE",
        "file_mounts.x: must exist on this machine, got LICENCE",
    ),
    ("aws.yaml", "InstanceType: c6i.4xlarge", "InstaceType: c6i.4xlarge", "node_config: must be what EC2 takes"),
    # Something else than the checks expect there.
    (
        "aws.yaml",
        "{MarketType: spot}",
        "",
        "InstanceMarketOptions: must have sections, lists and texts where the files",
    ),
    ("azure.yaml", "azure_arm_parameters:\n", "azure_arm_parameters: 5\n      more:\n", "got 5"),
    ("aws.yaml", "  - ray stop", "  - ray stop: 5", "must pass Ray's own validation"),
    (
        "kuberay/rayjob.yaml",
        "rayClusterSpec:",
        "rayClusterSpec: text\n  more:",
        "must be what Ray's autoscaler can read",
    ),
    (
        "kuberay/raycluster.yaml",
        "{mode: token}",
        "token",
        "spec.authOptions: must have sections, lists and texts where",
    ),
    ("kuberay/raycluster.yaml", "{claimName: mermaide-results}", "{}", "the file: must have sections, lists and"),
    (
        "kuberay/raycluster.yaml",
        "image: registry.example.org/ann/mermaide_ray:0.1.0",
        "image: 5",
        "have them, got 5",
    ),
]


@pytest.mark.parametrize(("file", "old", "new", "expected"), MISTAKES)
def test_planted_mistake_is_found(file: str, old: str, new: str, expected: str | None, root: Path) -> None:
    checked = root / "cluster" / (file if file.endswith(".yaml") else "aws.yaml")
    assert check(checked) == []
    change(root / "cluster" / file, old, new)
    found = [str(finding) for finding in check(checked)]
    assert found == [] if expected is None else any(expected in finding for finding in found), found


def test_token_that_is_missing_or_readable_by_others_is_found(root: Path, home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.chmod(0o644)
    [finding] = check(root / "cluster" / "aws.yaml")
    assert "must be readable by you alone, got a file that others can read: chmod 600" in str(finding)
    token.unlink()
    [finding] = check(root / "cluster" / "aws.yaml")
    assert "must exist on this machine" in str(finding)
    assert "ray get-auth-token --generate" in str(finding)


@pytest.mark.parametrize("name", ["README.md", "slurm.sh"])
def test_the_token_is_at_no_moment_readable_by_others(name: str) -> None:
    text, made = (REPOSITORY / "cluster" / name).read_text(), "ray get-auth-token --generate"
    assert text.count(made) == text.count(f"(umask 077; {made}") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("a: 1", "must have `provider` (ray up) or `apiVersion: ray.io/v1` (KubeRay), got neither"),
        ("a: [", "must be YAML"),
        ("a: 1\na: 2", "key 'a' is given twice"),
    ],
)
def test_file_that_is_no_clusters_is_refused(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert main(["cluster", "check", str(tmp_path / "x.yaml")]) == 2
    assert expected in capsys.readouterr().err
    assert main(["cluster", "check", str(tmp_path / "none.yaml")]) == 2
