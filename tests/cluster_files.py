"""What people get wrong in cluster files, as checks: each returns one sentence for each thing that would not work."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import tomllib

from tests.documents import REPOSITORY

# Ray itself puts this file on the head.
RAYS_OWN_FILES = {"~/ray_bootstrap_config.yaml"}

# The fields that the reference of KubeRay 1.6's custom resources documents, as far as builds could want them.
CLUSTER_FIELDS = {
    *{"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"},
    *{"headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"},
}
HEAD_FIELDS = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
GROUP_FIELDS = {
    *{"groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"},
    *{"replicas", "resources", "scaleStrategy", "suspend", "template"},
}
JOB_FIELDS = {
    *{
        "activeDeadlineSeconds",
        "backoffLimit",
        "clusterSelector",
        "deletionStrategy",
        "entrypoint",
        "entrypointNumCpus",
    },
    *{"entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML"},
    *{"shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend"},
    "ttlSecondsAfterFinished",
}


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    return dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines())[package]


# -- cluster.yaml -------------------------------------------------------------------------------------------


def useless_node_types(cluster: dict[str, Any]) -> list[str]:
    """Check that lanes can use each worker type, that there are both kinds, and that the limits let all start."""
    found = []
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}
    for name, node in workers.items():
        resources = node.get("resources", {})
        if unknown := set(resources) - {"CPU", "GPU", "memory", "object_store_memory"}:
            found.append(f"{name}: no process of a lane asks for {sorted(unknown)}")
        if resources.get("CPU", 0) < 1:
            found.append(f"{name}: every process of a lane asks for a CPU, and it has none")
        elif resources.get("GPU", 0) and resources["CPU"] < 2 * resources["GPU"]:
            found.append(f"{name}: fewer than two CPUs beside each GPU leave a lane without a decoder")
        if node.get("max_workers", cluster.get("max_workers", 2)) < 1:
            found.append(f"{name}: max_workers 0 never starts one")
    if sum(node.get("max_workers", 0) for node in workers.values()) > cluster.get("max_workers", 2):
        found.append("max_workers of the cluster is below the sum of its types'")
    kinds = [bool(node.get("resources", {}).get("GPU")) for node in workers.values()]
    return found + [
        f"no worker type {word} GPU" for word, kind in (("with a", True), ("without", False)) if kind not in kinds
    ]


def _ray_commands(cluster: dict[str, Any]) -> list[str]:
    keys = [key for key in cluster if key.endswith("_commands")]
    return list(chain.from_iterable(cluster[key] for key in keys))


def files_not_mounted(cluster: dict[str, Any]) -> list[str]:
    """Check that files of home folders that commands name are mounted, and are in what is mounted there."""
    found = []
    home = f"/home/{cluster['auth']['ssh_user']}"
    mounts = {PurePosixPath(target.replace("~", home, 1)): here for target, here in cluster["file_mounts"].items()}
    for command in _ray_commands(cluster):
        for word in re.findall(r"(?:~|/home/[\w-]+)/[\w./\[\]-]+", command):
            if word in RAYS_OWN_FILES:
                continue
            if not word.startswith(("~", home)):
                found.append(f"{word} is in another user's home")
            path = PurePosixPath(re.sub(r"\[\w+\]$", "", word.replace("~", home, 1)))
            target = next((mount for mount in (path, *path.parents) if mount in mounts), None)
            if target is None:
                found.append(f"{word} is not mounted")
            elif (
                not mounts[target].startswith("~")
                and not (REPOSITORY / mounts[target] / path.relative_to(target)).exists()
            ):
                found.append(f"{word} is not in {mounts[target]}")
            found += _missing_extras(word)
    return found


def _missing_extras(word: str) -> list[str]:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [f"the project has no extra {extra}" for extra in re.findall(r"\[(\w+)\]$", word) if extra not in extras]


def open_doors(cluster: dict[str, Any]) -> list[str]:
    """Check that every `ray start` asks for the token and that every node gets it."""
    starts = [command for command in _ray_commands(cluster) if "ray start" in command]
    found = [
        f"without RAY_AUTH_MODE=token: {c}" for c in starts if not re.search(r"\bRAY_AUTH_MODE=token ray start\b", c)
    ]
    if not any(target.endswith("/.ray/auth_token") for target in cluster["file_mounts"]):
        found.append("no node gets the token")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        if not any("ray start" in command for command in cluster[key]):
            found.append(f"{key} starts no Ray")
    return found


# -- Kubernetes ---------------------------------------------------------------------------------------------


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the RayClusterSpec of a RayCluster or RayJob."""
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def wrong_in_manifest(manifest: dict[str, Any]) -> list[str]:
    """Check a RayCluster or a RayJob: fields, versions, the token, replicas, and that all pods see the same."""
    found = [] if manifest["apiVersion"] == "ray.io/v1" else ["not ray.io/v1"]
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?", manifest["metadata"]["name"]):
        found.append("the name is not one for pods and services")
    if manifest["kind"] == "RayJob":
        found += _unknown(manifest["spec"], JOB_FIELDS, "RayJob")
    cluster = cluster_of(manifest)
    found += _unknown(cluster, CLUSTER_FIELDS, "RayCluster") + _unknown(cluster["headGroupSpec"], HEAD_FIELDS, "head")
    if cluster.get("rayVersion") != pinned("ray"):
        found.append("rayVersion is not the pinned one")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("authOptions.mode is not token")
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for name, group in groups.items():
        found += _unknown(group, GROUP_FIELDS, name) + _wrong_in_group(name, group, cluster)
    pods = {"head": cluster["headGroupSpec"], **groups}
    found += list(chain.from_iterable(_wrong_in_pod(name, group) for name, group in pods.items()))
    for what, same in (("image", _images), ("mounts", _mounts)):
        if len({str(same(group)) for group in pods.values()}) > 1:
            found.append(f"not every pod has the same {what}")
    return found


def _unknown(fields: dict[str, Any], known: set[str], where: str) -> list[str]:
    return [f"{where}: there is no field {field}" for field in sorted(set(fields) - known)]


def _wrong_in_group(name: str, group: dict[str, Any], cluster: dict[str, Any]) -> list[str]:
    found = []
    if not group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]:
        found.append(f"{name}: replicas are not between minReplicas and maxReplicas")
    grows = group["minReplicas"] < group["maxReplicas"]
    if grows and not cluster.get("enableInTreeAutoscaling"):
        found.append(f"{name}: nothing would ever change the number of replicas")
    if grows and group["template"]["spec"].get("restartPolicy") != "Never":
        found.append(f"{name}: the autoscaler's second version wants restartPolicy Never")
    limits = _limits(group)
    if int(limits["cpu"]) < (2 * int(limits["nvidia.com/gpu"]) if "nvidia.com/gpu" in limits else 1):
        found.append(f"{name}: no room for a decoder")
    tolerated = {toleration["key"] for toleration in group["template"]["spec"].get("tolerations", [])}
    if ("nvidia.com/gpu" in limits) != ("nvidia.com/gpu" in tolerated):
        found.append(f"{name}: asks for GPUs and does not tolerate their nodes' taint, or the other way round")
    return found


def _wrong_in_pod(name: str, group: dict[str, Any]) -> list[str]:
    found = [f"{name}: {key} is no string" for key, v in group["rayStartParams"].items() if not isinstance(v, str)]
    spec = group["template"]["spec"]
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        resources = container["resources"]
        if resources["requests"] != resources["limits"]:
            found.append(f"{name}: Ray counts limits, Kubernetes places by requests, and they differ")
        found += [f"{name}: no volume {m['name']}" for m in container["volumeMounts"] if m["name"] not in volumes]
        found += [f"{name}: {k} must be text" for k, v in resources["limits"].items() if not isinstance(v, str)]
    return found


def _limits(group: dict[str, Any]) -> dict[str, str]:
    return group["template"]["spec"]["containers"][0]["resources"]["limits"]


def _images(group: dict[str, Any]) -> list[str]:
    return [container["image"] for container in group["template"]["spec"]["containers"]]


def _mounts(group: dict[str, Any]) -> list[Any]:
    spec = group["template"]["spec"]
    return [spec.get("volumes"), [container["volumeMounts"] for container in spec["containers"]]]
