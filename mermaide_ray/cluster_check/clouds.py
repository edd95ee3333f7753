"""What clouds' defaults get wrong: open ports, idle machines, workers that can't reach the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from mermaide_ray.cluster_check.finding import HEAD_WORKS, IDLE_COSTS, Finding


def cloud_findings(config: dict[str, Any]) -> Iterator[Finding]:
    """Whatever costs money or stands open without need, on any cloud and on this one."""
    types = config.get("available_node_types") or {}
    head = config.get("head_node_type")
    if not types:
        yield Finding("available_node_types", "must be given: else Ray's default machines are used, got none")
        return
    if types[head]["resources"].get("CPU") != 0:
        yield Finding(
            f"available_node_types.{head}.resources.CPU",
            f"must be 0, got {types[head]['resources'].get('CPU', 'none')}: {HEAD_WORKS}",
        )
    for name, node in types.items():
        if name != head and node.get("min_workers", 0) > 0:
            yield Finding(
                f"available_node_types.{name}.min_workers",
                f"must be 0, got {node['min_workers']}: {IDLE_COSTS}",
            )
    if "idle_timeout_minutes" not in config:
        yield Finding("idle_timeout_minutes", "must say when an idle machine is given back, got nothing")
    if "max_workers" not in config:
        yield Finding("max_workers", "must bound what the cluster can cost, got nothing")
    if config["provider"].get("cache_stopped_nodes", True):
        yield Finding(
            "provider.cache_stopped_nodes",
            "must be false: a stopped machine that is started again does not join (ray issues 12104, 44544)",
        )
    if config["provider"]["type"] in _CLOUDS:
        yield from _CLOUDS[config["provider"]["type"]](config)


def _workers(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, node in (config.get("available_node_types") or {}).items():
        if name != config.get("head_node_type"):
            yield f"available_node_types.{name}.node_config", node["node_config"]


def _aws(config: dict[str, Any]) -> Iterator[Finding]:
    for name, node in config["available_node_types"].items():
        if not node["node_config"].get("SecurityGroupIds"):
            yield Finding(
                f"available_node_types.{name}.node_config.SecurityGroupIds",
                "must name a security group of your own: Ray's opens port 22 to the world, whatever "
                "provider.security_group says, got none",
            )
    head = config["head_node_type"]
    leads = config["available_node_types"][head]["node_config"].get("IamInstanceProfile")
    if not leads:
        yield Finding(
            f"available_node_types.{head}.node_config.IamInstanceProfile",
            "must name a role that may start machines and pass the workers' role on (iam:PassRole): Ray's own may not, "
            "and no worker would start, got none",
        )
    for key, node in _workers(config):
        if node.get("InstanceMarketOptions", {}).get("MarketType") != "spot":
            yield Finding(f"{key}.InstanceMarketOptions", "must be {MarketType: spot}: losing one costs seconds here")
        if node.get("IamInstanceProfile") in (None, leads):
            got = "the head's" if leads else "none"
            yield Finding(
                f"{key}.IamInstanceProfile", f"must name a role that may write to the bucket and no more, got {got}"
            )
    for name, node in config["available_node_types"].items():
        yield from _aws_parameters(f"available_node_types.{name}.node_config", node["node_config"])


def _aws_parameters(where: str, node: Mapping[str, Any]) -> Iterator[Finding]:
    shape = _run_instances()
    if shape is None:
        return
    from botocore.validate import ParamValidator  # type: ignore[import-untyped]

    report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
    if report.has_errors():
        yield Finding(where, f"must be what EC2 takes, got: {report.generate_report().splitlines()[0]}")


@cache
def _run_instances() -> Any:
    """EC2's own description of RunInstances, or None without botocore, which whoever starts machines there has."""
    try:
        import botocore.session  # type: ignore[import-untyped]
    except ImportError:
        return None
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _gcp(config: dict[str, Any]) -> Iterator[Finding]:
    for name, node in config["available_node_types"].items():
        if not node["node_config"].get("networkInterfaces"):
            yield Finding(
                f"available_node_types.{name}.node_config.networkInterfaces",
                "must name a subnetwork of your own: the default network opens port 22 to the world, got none",
            )
    for key, node in _workers(config):
        scheduling = node.get("scheduling")
        if not isinstance(scheduling, Mapping) or scheduling.get("provisioningModel") != "SPOT":
            yield Finding(f"{key}.scheduling", "must be {provisioningModel: SPOT, …}: losing one costs seconds here")
        if not node.get("serviceAccounts"):
            yield Finding(f"{key}.serviceAccounts", "must name an account that may write to the bucket, got none")


def _azure(config: dict[str, Any]) -> Iterator[Finding]:
    if not config["provider"].get("use_internal_ips"):
        yield Finding(
            "provider.use_internal_ips",
            "must be true: Ray's template opens port 22 to the world on machines with a public address",
        )
    for key, node in _workers(config):
        if node.get("azure_arm_parameters", {}).get("priority") != "Spot":
            yield Finding(f"{key}.azure_arm_parameters.priority", "must be Spot: losing one costs seconds here")


_CLOUDS = {"aws": _aws, "gcp": _gcp, "azure": _azure}
