"""Files for KubeRay: what Ray's autoscaler reads of them, and what guards the pods."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mermaide_ray.cluster_check.finding import HEAD_WORKS, IDLE_COSTS, LOOPBACK, NOT_SHARED, Finding
from mermaide_ray.cluster_check.versions import image_findings, pinned_ray, version_findings


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


def _kuberay_pods(below: str, cluster: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    groups = {
        "headGroupSpec": cluster["headGroupSpec"],
        **{f"workerGroupSpecs[{place}]": group for place, group in enumerate(cluster["workerGroupSpecs"])},
    }
    claims = {}
    for name, group in groups.items():
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
