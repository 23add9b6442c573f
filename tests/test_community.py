"""Files for those who join in: workflows, forms, owners, citation. Schemas are those that check-jsonschema ships."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
HUB = ROOT / ".github"
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((HUB / "workflows").glob("*.yml"))
}
TARGETS = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SCHEMAS = {
    "github-workflows": [*(HUB / "workflows").glob("*.yml")],
    "dependabot": [HUB / "dependabot.yml"],
    "github-issue-forms": [p for p in (HUB / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"],
    "github-issue-config": [HUB / "ISSUE_TEMPLATE" / "config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
if not HUB.is_dir():
    pytest.skip("not a checkout", allow_module_level=True)


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{name}: {key}", job) for name, flow in WORKFLOWS.items() for key, job in flow["jobs"].items()]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_schemas_hold(schema: str) -> None:
    tool = pytest.importorskip("check_jsonschema")
    assert SCHEMAS[schema]
    words = ["--builtin-schema", f"vendor.{schema}", "--default-filetype", "yaml"]
    done = CliRunner().invoke(tool.main, [*words, *map(str, SCHEMAS[schema])])
    assert done.exit_code == 0, done.output


def test_the_workflows_are_there() -> None:
    assert set(WORKFLOWS) == {"test", "matrix", "docs", "release"}


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_a_job_runs_make_targets_that_exist_and_nothing_else(name: str, job: dict[str, Any]) -> None:
    """So that what CI runs is what anybody can run; third-party steps are pinned, and no job lasts for ever."""
    assert job["timeout-minutes"] <= 360
    for step in job["steps"]:
        if "run" in step:
            command, target, *_ = step["run"].split()
            assert command == "make", step
            assert target in TARGETS, step
        else:
            assert re.fullmatch(r"[\w-]+/[\w.-]+@(v\d+|release/v\d+)", step["uses"]), step


def test_a_workflow_may_read_and_only_two_jobs_may_more() -> None:
    assert all(flow["permissions"] == {"contents": "read"} for flow in WORKFLOWS.values())
    assert {name for name, job in jobs() if "permissions" in job} == {"docs: deploy", "release: publish"}


def test_each_python_that_is_declared_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    declared = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]["python"] == declared
    setup = next(
        s for s in WORKFLOWS["matrix"]["jobs"]["matrix"]["steps"] if "python-version" in s.get("with", {})
    )
    assert sorted(setup["with"]["python-version"].split()) == declared


def test_owners_are_asked_about_paths_that_exist() -> None:
    lines = (HUB / "CODEOWNERS").read_text().splitlines()
    paths = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert paths
    for path in paths:
        assert path.startswith("/")
        assert (ROOT / path[1:]).exists(), path


def test_dependabot_looks_where_there_is_something() -> None:
    kinds = {"pip": "pyproject.toml", "github-actions": ".github/workflows", "docker": "*Dockerfile*"}
    for update in yaml.safe_load((HUB / "dependabot.yml").read_text())["updates"]:
        folder = ROOT / update["directory"].strip("/")
        wanted = kinds[update["package-ecosystem"]]
        assert (folder / wanted).exists() or any(fnmatch(p.name, wanted) for p in folder.iterdir()), update


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    date = re.search(
        rf"^## \[{re.escape(version)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert date
    assert (cited["version"], str(cited["date-released"])) == (version, date[1])


def test_governance_has_ten_lines() -> None:
    lines = (HUB / "GOVERNANCE.md").read_text().splitlines()
    assert [line.partition(". ")[0] for line in lines if line and line[0].isdigit()] == [
        str(i + 1) for i in range(10)
    ]


@pytest.mark.parametrize("page", ["SECURITY", "CODE_OF_CONDUCT", "GOVERNANCE"])
def test_links_of_these_pages_lead_somewhere(page: str) -> None:
    text = (HUB / f"{page}.md").read_text()
    for target, anchor in re.findall(r"\]\((?!http)([^)#]+)#?([^)]*)\)", text):
        assert (HUB / target).exists(), target
        heads = re.findall(r"^#+ (.+)$", (HUB / target).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in slugs, anchor
