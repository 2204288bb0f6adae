"""What Dockerfile, compose.yaml, deploy/ and docs/DEPLOYMENT.md name exists in the code."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import typer
import yaml
from botocore.validate import ParamValidator

import vermilion
from vermilion.accounts.keys import SCOPES
from vermilion.cli import app, launch
from vermilion.cli.options import ServeOptions
from vermilion.config import load
from vermilion.ray_serve import replica_models
from vermilion.serving.admin.metrics import Metrics
from vermilion.serving.http.app import ROUTES
from vermilion.types import EngineStats

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "vermilion"
PAGE = (ROOT / "docs" / "DEPLOYMENT.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TEMPLATES = {path.name: path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").iterdir())}
FILES = [ROOT / "Dockerfile", ROOT / "compose.yaml", *sorted(DEPLOY.rglob("*.*"))]
NAMED = "\n".join([PAGE, *(path.read_text(encoding="utf-8") for path in FILES if path.is_file())])
OF_COMPOSE = {"VERMILION_TARGET", "VERMILION_IMAGE_MODEL"}
"""Variables that compose.yaml itself reads."""


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def variables() -> set[str]:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    return set(re.findall(r"\b(?:VERMILION|SAGEMAKER)_[A-Z_]+\b", sources))


def test_every_variable_is_read_by_the_code() -> None:
    named = set(re.findall(r"\b(?:VERMILION|SAGEMAKER)_[A-Z_]+\b", NAMED))
    assert len(named) > 8
    assert named - variables() - OF_COMPOSE == set()


def test_every_setting_exists() -> None:
    settings = {name.rstrip(".") for name in re.findall(r"\b(?:serve|engine|ray)\.[a-z_.]+", NAMED)} - {
        "serve.toml",
        "serve.yaml",
    }
    known = launch.Settings()
    for setting in settings:
        value: Any = known
        for part in setting.split("."):
            assert hasattr(value, part), setting
            value = getattr(value, part)
    written = DEPLOY / "systemd" / "serve.toml"
    assert launch.settings_of(ServeOptions(config=written)) == load(launch.Settings, written)
    stated = tomllib.loads(written.read_text(encoding="utf-8"))["engine"]
    assert stated == {name: getattr(known.engine, name) for name in stated}, "the file shows the defaults"


def test_the_serve_config_of_ray_is_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERMILION_ACCOUNTS", "postgresql://vermilion@database/accounts")
    (service,) = read_yaml(DEPLOY / "ray" / "serve.yaml")["applications"]
    settings = replica_models.settings_of(service["args"])
    assert settings.serve.accounts.url.startswith("postgresql") and settings.ray.min_replicas == 2
    module, _, function = service["import_path"].partition(":")
    source = (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    assert f"\ndef {function}(args" in source


def test_every_metric_is_exported() -> None:
    exported = Metrics(EngineStats).render().decode()
    known = {line.split()[2] for line in exported.splitlines() if line.startswith("# TYPE ")}
    expressions = json.dumps(json.loads((DEPLOY / "grafana/dashboards/vermilion.json").read_text()))
    asked = set(re.findall(r"\bvermilion_[a-z_]+", expressions + PAGE + TEMPLATES["autoscaler.yaml"]))
    assert len(asked) > 15
    bare = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in asked}
    assert bare - known == set()


def test_probes_ask_for_routes_on_the_port_that_is_served() -> None:
    routes = {route.path for route in ROUTES}
    azure = read_yaml(DEPLOY / "azureml" / "deployment.yaml")["environment"]["inference_config"]
    for route in azure.values():
        assert route["path"] in routes and route["port"] == 8080
    probes = set(re.findall(r"path: (/[a-z]+), port: http", TEMPLATES["deployment.yaml"]))
    assert probes == {"/ready", "/health"} <= routes
    assert {"/ready", "/health", "/ping", "/invocations", "/score", "/metrics", "/v1/files"} <= routes
    assert "}/ready" in DOCKERFILE
    assert "EXPOSE 8080" in DOCKERFILE and "SAGEMAKER_BIND_TO_PORT=8080" in DOCKERFILE
    assert "containerPort: 8080" in TEMPLATES["deployment.yaml"]
    assert 'VERMILION_PORT, value: "8080"' in TEMPLATES["deployment.yaml"]
    assert read_yaml(ROOT / "compose.yaml")["services"]["vermilion"]["ports"] == ["127.0.0.1:8080:8080"]
    (job,) = read_yaml(DEPLOY / "prometheus" / "prometheus.yaml")["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"] == [{"targets": ["vermilion:8080"]}]


def test_there_is_time_to_drain() -> None:
    least = launch.Settings().serve.drain_timeout_s + 5 + 2
    compose = read_yaml(ROOT / "compose.yaml")["services"]["vermilion"]["stop_grace_period"]
    unit = (DEPLOY / "systemd" / "vermilion.service").read_text(encoding="utf-8")
    grace = re.search(r"terminationGracePeriodSeconds: (\d+)", TEMPLATES["deployment.yaml"])
    stop = re.search(r"TimeoutStopSec=(\d+)", unit)
    assert grace and stop
    assert min(int(compose.removesuffix("s")), int(grace[1]), int(stop[1])) >= least


def command_lines() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.+?)```", PAGE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "$(" not in line]
    own = [line[line.index("vermilion") :] for line in words if "vermilion" in line and "accounts" in line]
    unit = (DEPLOY / "systemd" / "vermilion.service").read_text(encoding="utf-8")
    started = [["vermilion", *shlex.split(line)] for line in re.findall(r"bin/vermilion (.+)", unit)]
    quoted = [shlex.split(line) for line in re.findall(r"`(vermilion [^`]+)`", PAGE)]
    pulled = [
        ["vermilion", *shlex.split(line)] for line in re.findall(r"RUN .*?vermilion (pull .+)", DOCKERFILE)
    ]
    return [*own, *started, *quoted, *pulled]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_and_option_exists(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, words
        command = command.commands[rest.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options, words
    if "--scopes" in rest:
        assert rest[rest.index("--scopes") + 1] in SCOPES


def test_the_chart_uses_values_that_it_has_and_whose_form_it_states() -> None:
    values = read_yaml(CHART / "values.yaml")
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    for wrong in ({"replicas": 0}, {"replica": 2}, {"service": {"type": "Host"}}, {"cache": {"size": "big"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**values, **wrong}, schema)
    named = re.findall(r"\.Values\.([A-Za-z.]+)", "".join(TEMPLATES.values()))
    named += re.findall(r"--set ([A-Za-z]+\.[A-Za-z.]+)=", PAGE)
    for path in named:
        value: Any = values
        for part in path.split("."):
            assert part in value, path
            value = value[part]
    used = {path.split(".")[0] for path in named}
    assert set(values) <= used
    assert read_yaml(CHART / "Chart.yaml")["appVersion"] == vermilion.__version__


def test_the_container_is_confined() -> None:
    assert re.findall(r"^USER (.+)", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["vermilion"]\nCMD ["serve"]' in DOCKERFILE
    targets = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "cuda", "model-none", "model-embedded"} <= set(targets)
    services = read_yaml(ROOT / "compose.yaml")["services"]
    for name in ("vermilion", "migrate"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]
    torch = next(
        line
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if line.startswith("torch")
    )
    assert DOCKERFILE.count(f'"{torch}"') == 2


def test_compose_and_grafana_name_what_there_is() -> None:
    compose = read_yaml(ROOT / "compose.yaml")
    volumes = [volume for service in compose["services"].values() for volume in service.get("volumes", ())]
    for source in (volume.split(":")[0] for volume in volumes):
        assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], source
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= set(compose["services"])
    assert set(re.findall(r"\$\{([A-Z_]+):\?", json.dumps(compose))) <= set(re.findall(r"[A-Z_]+", PAGE))
    (source,) = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    dashboard = json.loads((DEPLOY / "grafana/dashboards/vermilion.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert read_yaml(DEPLOY / "grafana/provisioning/dashboards/vermilion.yaml")["providers"][0]["options"][
        "path"
    ] in json.dumps(compose)


@pytest.mark.parametrize(
    ("operation", "file"),
    [("CreateModel", "create-model.json"), ("CreateEndpointConfig", "create-endpoint-config.json")],
)
def test_sagemaker_takes_the_recipe(operation: str, file: str) -> None:
    shape = botocore.session.get_session().get_service_model("sagemaker").operation_model(operation)
    recipe = json.loads((DEPLOY / "sagemaker" / file).read_text(encoding="utf-8"))
    report = ParamValidator().validate(recipe, shape.input_shape)
    assert not report.has_errors(), report.generate_report()


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"\b(?:deploy|docs|bench|scripts)/[\w./-]*\w", PAGE))
    assert [name for name in named if not (ROOT / name).exists()] == []
