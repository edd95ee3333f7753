"""Files for KubeRay: what Ray's autoscaler reads of them, and what guards the pods."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mermaide_ray.cluster_check.finding import HEAD_WORKS, IDLE_COSTS, LOOPBACK, NOT_SHARED, Finding
from mermaide_ray.cluster_check.versions import image_findings, pinned_ray, version_findings

# The label that Kubernetes itself puts on each namespace: its name.
_NAMESPACE = "kubernetes.io/metadata.name"


def kuberay_findings(documents: list[dict[str, Any]], root: Path) -> Iterator[Finding]:
    """Everything wrong with a RayCluster or RayJob and what stands beside it in its file."""
    resource = documents[0]
    is_job = resource.get("kind") == "RayJob"
    below = "spec.rayClusterSpec" if is_job else "spec"
    cluster = (resource.get("spec") or {}).get("rayClusterSpec") if is_job else resource.get("spec")
    try:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        metadata = {"namespace": "default", **resource["metadata"]}
        _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": copy.deepcopy(cluster)})
        assert isinstance(cluster, dict)
    except Exception as error:  # it is written for files that Kubernetes has accepted: KeyError, TypeError, …
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        yield Finding(below, f"must be what Ray's autoscaler can read, got: {missing}")
        return
    yield from version_findings(root)
    pinned = pinned_ray(root)
    if pinned and str(cluster.get("rayVersion")) != pinned:
        yield Finding(f"{below}.rayVersion", f"must be {pinned} as in constraints.txt, got {cluster.get('rayVersion')}")
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield Finding(
            f"{below}.authOptions", "must be {mode: token} (KubeRay >= 1.5.1): else every pod that reaches it runs code"
        )
    if not cluster.get("enableInTreeAutoscaling"):
        yield Finding(f"{below}.enableInTreeAutoscaling", "must be true: else idle workers stay")
    if "idleTimeoutSeconds" not in (cluster.get("autoscalerOptions") or {}):
        yield Finding(f"{below}.autoscalerOptions.idleTimeoutSeconds", "must say when an idle worker goes, got nothing")
    yield from _kuberay_head(f"{below}.headGroupSpec", cluster["headGroupSpec"], documents)
    for place, group in enumerate(cluster["workerGroupSpecs"]):
        if group["minReplicas"] > 0:
            yield Finding(
                f"{below}.workerGroupSpecs[{place}].minReplicas",
                f"must be 0, got {group['minReplicas']}: {IDLE_COSTS}",
            )
    yield from _kuberay_pods(below, cluster, root)
    for document in documents:
        if document.get("kind") == "NetworkPolicy":
            yield from _policy(document, below, cluster)


def _kuberay_head(where: str, head: Mapping[str, Any], documents: list[dict[str, Any]]) -> Iterator[Finding]:
    parameters = head.get("rayStartParams") or {}
    if str(parameters.get("num-cpus")) != "0":
        yield Finding(
            f"{where}.rayStartParams.num-cpus",
            f'must be "0", got {parameters.get("num-cpus", "none")}: {HEAD_WORKS}',
        )
    guarded = any(document.get("kind") == "NetworkPolicy" for document in documents)
    if parameters.get("dashboard-host") not in LOOPBACK and not guarded:
        yield Finding(
            f"{where}.rayStartParams.dashboard-host",
            f"must be 127.0.0.1, or a NetworkPolicy must stand beside, got {parameters.get('dashboard-host', 'none')} "
            "alone: KubeRay's default is open to every pod",
        )
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield Finding(f"{where}.serviceType", "must be ClusterIP, without ingress: `kubectl port-forward` reaches it")


def _groups(cluster: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Where each group of pods stands, and what it is."""
    workers = {f"workerGroupSpecs[{place}]": group for place, group in enumerate(cluster["workerGroupSpecs"])}
    return {"headGroupSpec": cluster["headGroupSpec"], **workers}


def _policy(policy: Mapping[str, Any], below: str, cluster: Mapping[str, Any]) -> Iterator[Finding]:
    """Whom a NetworkPolicy guards, and whom it lets in."""
    spec, where = policy["spec"], "NetworkPolicy spec"
    selected = spec["podSelector"].get("matchLabels") or {}
    for name, group in _groups(cluster).items():
        labels = (group["template"].get("metadata") or {}).get("labels") or {}
        if not selected.items() <= labels.items():
            yield Finding(
                f"{where}.podSelector",
                f"must select the pods of {below}.{name}, whose labels are {_listed(labels)}, got {_listed(selected)}",
            )
    if "Ingress" not in (spec.get("policyTypes") or ["Ingress"]):
        yield Finding(f"{where}.policyTypes", "must hold Ingress: else it keeps nobody out")
    for place, rule in enumerate(spec.get("ingress") or ()):
        here = f"{where}.ingress[{place}].from"
        if not rule.get("from"):
            yield Finding(here, "must say who reaches Ray, got nothing: that is everybody")
        for peer in rule.get("from") or ():
            spaces, pods = (
                (peer.get(key) or {}).get("matchLabels") or {} for key in ("namespaceSelector", "podSelector")
            )
            if "namespaceSelector" in peer and _NAMESPACE not in spaces:
                yield Finding(
                    f"{here}.namespaceSelector",
                    f"must name one namespace by {_NAMESPACE}, got {_listed(spaces)}: a pod of any other would only "
                    "have to take the same labels",
                )
            elif not pods and "ipBlock" not in peer:
                yield Finding(f"{here}.podSelector", "must select pods by their labels, got all of a namespace")
            elif str((peer.get("ipBlock") or {}).get("cidr", "")).endswith("/0"):
                yield Finding(f"{here}.ipBlock.cidr", f"must bound the addresses, got {peer['ipBlock']['cidr']}")


def _listed(labels: Mapping[str, Any]) -> str:
    """'app: mermaide'."""
    return ", ".join(f"{key}: {value}" for key, value in labels.items()) or "none"


def _kuberay_pods(below: str, cluster: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    claims = {}
    for name, group in _groups(cluster).items():
        pod, where = group["template"]["spec"], f"{below}.{name}.template.spec"
        yield from image_findings(f"{where}.containers[0].image", pod["containers"][0].get("image") or "", root)
        claims[where] = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod.get("volumes", ())
            if "persistentVolumeClaim" in volume
        }
    shared = set.intersection(*claims.values())
    if not shared:
        without = next((where for where, found in claims.items() if not found), next(iter(claims)))
        yield Finding(
            f"{without}.volumes",
            f"must mount the PersistentVolumeClaim for results that all pods share, got none: {NOT_SHARED}",
        )
