"""The example cluster files fit their schemas, and what people get wrong in them is found."""

from __future__ import annotations

import copy
import json
import re
import shlex
from importlib import resources

import jsonschema
import pytest
import tomllib
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from jobs.arguments import make_parser
from tests.cluster_files import (
    cluster_of,
    files_not_mounted,
    open_doors,
    pinned,
    useless_node_types,
    wrong_in_manifest,
)
from tests.documents import REPOSITORY, our_arguments

EXAMPLES = REPOSITORY / "examples" / "clusters"


@pytest.fixture
def cluster():
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def _manifest(kind):
    return copy.deepcopy(yaml.safe_load((EXAMPLES / f"kuberay-{kind}.yaml").read_text()))


# -- ray up -------------------------------------------------------------------------------------------------


def test_the_cluster_file_fits_rays_schema_and_passes_the_checks_of_ray_up(cluster):
    jsonschema.validate(cluster, json.loads(resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text()))
    validate_config(prepare_config(cluster))


def test_lanes_can_use_the_cluster_file(cluster):
    assert useless_node_types(cluster) + files_not_mounted(cluster) + open_doors(cluster) == []


def _gpu_worker(cluster):
    return cluster["available_node_types"]["gpu_worker"]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda c: _gpu_worker(c)["resources"].update(CPU=0), "every process of a lane asks for a CPU"),
        (lambda c: _gpu_worker(c)["resources"].update(CPU=1), "leave a lane without a decoder"),
        (lambda c: _gpu_worker(c)["resources"].update(gpu=1), "no process of a lane asks for ['gpu']"),
        (lambda c: _gpu_worker(c)["resources"].pop("GPU"), "no worker type with a GPU"),
        (lambda c: c["available_node_types"].pop("cpu_worker"), "no worker type without GPU"),
        (lambda c: _gpu_worker(c).update(max_workers=0), "max_workers 0 never starts one"),
        (lambda c: c.update(max_workers=8), "below the sum"),
    ],
)
def test_node_types_that_no_lane_could_use(cluster, spoil, found):
    spoil(cluster)
    assert any(found in problem for problem in useless_node_types(cluster))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda c: c["file_mounts"].pop("/home/ubuntu/vlm-cache"), "vlm-cache/constraints.txt is not mounted"),
        (lambda c: c["auth"].update(ssh_user="ec2-user"), "is in another user's home"),
        (lambda c: c["setup_commands"].append("pip install -r ~/vlm-cache/requirements.txt"), "is not in ."),
        (lambda c: c["setup_commands"].append("pip install '/home/ubuntu/vlm-cache[builds]'"), "no extra builds"),
        (lambda c: c["head_start_ray_commands"].append("bash ~/mount.sh"), "~/mount.sh is not mounted"),
    ],
)
def test_commands_that_name_files_not_mounted(cluster, spoil, found):
    spoil(cluster)
    assert any(found in problem for problem in files_not_mounted(cluster))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (
            lambda c: c.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
            "without RAY_AUTH_MODE",
        ),
        (lambda c: c["head_start_ray_commands"].__setitem__(1, "RAY_AUTH_MODE=disabled ray start --head"), "without"),
        (lambda c: c["file_mounts"].pop("/home/ubuntu/.ray/auth_token"), "no node gets the token"),
        (lambda c: c.update(worker_start_ray_commands=["ray stop"]), "starts no Ray"),
    ],
)
def test_a_cluster_whose_nodes_disagree_on_the_token(cluster, spoil, found):
    spoil(cluster)
    assert any(found in problem for problem in open_doors(cluster))


# -- KubeRay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cluster", "job"])
def test_the_manifests_are_what_kuberay_documents(kind):
    assert wrong_in_manifest(_manifest(kind)) == []


def _group(manifest, index=-1):
    return cluster_of(manifest)["workerGroupSpecs"][index]


def _container(manifest):
    return _group(manifest)["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda m: m.update(apiVersion="ray.io/v1alpha1"), "ray.io/v1"),
        (lambda m: m["metadata"].update(name="vlm_cache"), "the name"),
        (lambda m: cluster_of(m).update(enableInTreeAutoScaling=True), "no field enableInTreeAutoScaling"),
        (lambda m: cluster_of(m).update(rayVersion="2.40.0"), "rayVersion"),
        (lambda m: cluster_of(m).pop("authOptions"), "authOptions"),
        (lambda m: cluster_of(m)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "num-cpus is no string"),
        (lambda m: _group(m).update(replicas=99), "replicas are not between"),
        (
            lambda m: _group(m).update(minReplicas=-1) or cluster_of(m).pop("enableInTreeAutoscaling", 0),
            "nothing would ever",
        ),
        (lambda m: _group(m)["template"]["spec"].pop("tolerations"), "taint"),
        (lambda m: _container(m)["resources"]["limits"].update(cpu="1"), "no room for a decoder"),
        (lambda m: _container(m)["resources"]["requests"].update(memory="1Gi"), "they differ"),
        (lambda m: _container(m)["resources"]["limits"].update({"nvidia.com/gpu": 1}), "must be text"),
        (lambda m: _container(m).update(image="rayproject/ray:2.60.0"), "same image"),
        (lambda m: _container(m).update(volumeMounts=[]), "same mounts"),
        (lambda m: _group(m)["template"]["spec"].update(volumes=[]), "no volume shared"),
    ],
)
@pytest.mark.parametrize("kind", ["cluster", "job"])
def test_what_is_wrong_in_a_manifest(kind, spoil, found):
    manifest = _manifest(kind)
    spoil(manifest)
    assert any(found in problem for problem in wrong_in_manifest(manifest))


def test_the_job_asks_for_the_lanes_that_its_cluster_has():
    manifest = _manifest("job")
    arguments = make_parser().parse_args(our_arguments(manifest["spec"]["entrypoint"]))
    limits = [
        (group["replicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in cluster_of(manifest)["workerGroupSpecs"]
    ]
    gpus = sum(replicas * int(of_one.get("nvidia.com/gpu", 0)) for replicas, of_one in limits)
    assert (arguments.command, arguments.lanes, arguments.device) == ("build", gpus, "gpu")
    mounted = [mount["mountPath"] for mount in _container(manifest)["volumeMounts"]]
    for path in (arguments.data, arguments.model, arguments.store, arguments.report):
        assert str(path).startswith(tuple(mounted)), path
    RuntimeEnv(**yaml.safe_load(manifest["spec"]["runtimeEnvYAML"]))


# -- runtime environments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runtime-env.yaml", "runtime-env-pip.yaml"])
def test_a_runtime_environment_is_one_for_ray(name):
    environment = yaml.safe_load((EXAMPLES / name).read_text())
    RuntimeEnv(**environment, _validate=True)
    for excluded in environment["excludes"]:
        assert (REPOSITORY / excluded.strip("/")).is_dir(), excluded


def test_the_runtime_environment_that_installs_has_every_library_but_ray_as_pinned():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {
        re.match(r"[\w-]+", line)[0] for line in [*project["dependencies"], *project["optional-dependencies"]["build"]]
    }
    listed = yaml.safe_load((EXAMPLES / "runtime-env-pip.yaml").read_text())["pip"]
    assert {line.split("==")[0]: line.split("==")[1] for line in listed} == {
        name: pinned(name) for name in sorted(wanted - {"ray"})
    }


# -- Slurm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slurm-build.sbatch", "slurm-array.sbatch"])
def test_the_command_in_a_scripts_head_parses(name):
    text = re.sub(r"\\\n#\s*", "", (EXAMPLES / name).read_text())
    (command,) = re.findall(rf"sbatch examples/clusters/{re.escape(name)} (.*)", text)
    assert make_parser().parse_args(["build", *shlex.split(command)]).command == "build"
