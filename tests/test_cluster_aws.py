"""The shipped AWS file through Ray's own start-up, against a simulated AWS: what `ray up` asks EC2 and IAM for."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from test_cluster_check import REPOSITORY, filled

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a simulated AWS; the only one that this process then knows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MOTO_EC2_LOAD_DEFAULT_AMIS": "true",
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
            "AWS_ACCESS_KEY_ID": "simulated",
            "AWS_SECRET_ACCESS_KEY": "simulated",
            "AWS_DEFAULT_REGION": "us-west-2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(tmp_path_factory.mktemp("home")),
        }.items():
            patch.setenv(name, value)
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        iam = boto3.client("iam")
        for name in ("mermaide-head", "mermaide-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield f"http://{host}:{port}"
        running.stop()


def started(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ray's start-up of a file, as far as the machines exist.

    Returns:
        EC2's description of a machine of each type, and what Ray asked for (the simulation forgets roles).
    """
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    whole = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(prepared))
    provider = AWSNodeProvider(whole["provider"], whole["cluster_name"])
    seen, asked = {}, {}
    for name, node in whole["available_node_types"].items():
        kind = "head" if name == whole["head_node_type"] else "worker"
        # As `ray up` puts a head's request together.
        asked[name] = {**(whole.get("head_node", {}) if kind == "head" else {}), **node["node_config"]}
        [identity] = provider.create_node(asked[name], {TAG_RAY_NODE_KIND: kind}, 1)
        described = boto3.client("ec2").describe_instances(InstanceIds=[identity])
        seen[name] = described["Reservations"][0]["Instances"][0]
    return seen, asked


def aws_file() -> dict[str, Any]:
    """The shipped file, filled in with what cluster/README.md says to make."""
    ec2, own_address = boto3.client("ec2"), [{"CidrIp": "203.0.113.7/32"}]
    group = ec2.create_security_group(GroupName=str(uuid.uuid4()), Description="mermaide")["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": own_address}
    among_themselves = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, among_themselves])
    text = (REPOSITORY / "cluster" / "aws.yaml").read_text().replace("CHANGE_ME_security_group", group)
    config: dict[str, Any] = yaml.safe_load(filled(text))
    return config


def let_in_by(machine: dict[str, Any]) -> set[tuple[int, str]]:
    """(port, addresses) from which a machine can be reached, other machines of the cluster apart."""
    groups = [group["GroupId"] for group in machine["SecurityGroups"]]
    described = boto3.client("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"]
    rules = [rule for group in described for rule in group["IpPermissions"]]
    assert not any(rule.get("Ipv6Ranges") for rule in rules)
    return {(rule["FromPort"], each["CidrIp"]) for rule in rules for each in rule["IpRanges"]}


def test_ray_starts_the_machines_that_the_file_describes(aws: str) -> None:
    machines, asked = started(aws_file())
    assert machines["head"]["InstanceType"] == "m6i.xlarge"
    assert machines["worker"]["InstanceType"] == "c6i.4xlarge"
    assert machines["worker"]["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in machines["head"]
    assert asked["worker"]["IamInstanceProfile"] == {"Name": "mermaide-worker"}
    assert asked["head"]["IamInstanceProfile"] == {"Name": "mermaide-head"}
    for machine in machines.values():
        assert let_in_by(machine) == {(22, "203.0.113.7/32")}


def test_ray_s_own_security_group_is_open_to_the_world_even_with_rules_of_one_s_own(aws: str) -> None:
    """Why the file names a group, and why the check insists on it."""
    config = aws_file()
    for node in config["available_node_types"].values():
        del node["node_config"]["SecurityGroupIds"]
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    config["provider"]["security_group"] = {"GroupName": "rules-of-one-s-own", "IpPermissions": [rule]}
    machines, _ = started(config)
    assert (22, "0.0.0.0/0") in let_in_by(machines["worker"])


@pytest.mark.parametrize(
    ("node", "key", "value"), [("worker", "InstanceType", "c6i.5xlarge"), ("head", "InstaceType", "m6i.xlarge")]
)
def test_wrong_machine_is_refused(aws: str, node: str, key: str, value: str) -> None:
    config = aws_file()
    config["available_node_types"][node]["node_config"][key] = value
    with pytest.raises(BaseException, match=r"c6i\.5xlarge|InstaceType"):  # Ray leaves by SystemExit as well
        started(config)
