"""Training data from source distributions: what is refused, what is kept, and that it is repeatable."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from vermilion.cli import build_data
from vermilion.config import load
from vermilion.data import pipeline as building
from vermilion.data.archives import fetch_sdist, read_texts
from vermilion.data.cleaning import (
    Decontamination,
    Deduplicator,
    is_wanted_path,
    refusal_of_text,
    without_header,
)
from vermilion.data.corpus import Corpus
from vermilion.data.licences import (
    PERMISSIVE,
    is_allowed,
    licence_of_file,
    licence_of_metadata,
    licence_of_text,
)
from vermilion.data.pipeline import DataRecipe, Package, Tasks, build, capped
from vermilion.errors import ConfigError
from vermilion.training import toy

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy"
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007"


def function(name: str, words: int = 60) -> str:
    """Python unlike that of any other name."""
    marks = [hashlib.sha256(f"{name}{i}".encode()).hexdigest()[:9].translate(_LETTERS) for i in range(words)]
    lines = [f"{name}_{mark} = {i % 7}" for i, mark in enumerate(marks)]
    return f"def {name}():\n    " + "\n    ".join(lines) + "\n"


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def sdist(folder: Path, name: str, files: dict[str, str], licence: str = "MIT") -> Package:
    """A source distribution made on the spot."""
    content = {"PKG-INFO": f"Metadata-Version: 2.4\nName: {name}\nLicense-Expression: {licence}\n", **files}
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in content.items():
            member = tarfile.TarInfo(f"{name}-1.0/{file}" if not file.startswith(("/", "..")) else file)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return Package(name, "1.0", path)


@pytest.fixture
def recipe(tmp_path: Path) -> DataRecipe:
    """Three projects, one held out, answers and tasks, over the toy's byte tokenizer."""
    toy._write_texts(tmp_path)
    (tmp_path / "model.safetensors").touch()
    shared = function("shared")
    packages = [
        sdist(
            tmp_path,
            "one",
            {"one.py": function("one"), "copy.py": shared, "docs/a.rst": "Some words here. " * 30},
        ),
        sdist(tmp_path, "two", {"two.py": function("two"), "own.py": function("own")}),
        sdist(tmp_path, "kept", {"kept.py": function("kept"), "copy.py": shared}),
    ]
    packages[2] = replace(packages[2], held_out=True)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"prompt": "hi", "response": "hello there"}))
    return DataRecipe(
        tmp_path / "out", str(tmp_path), tmp_path / "downloads", tuple(packages), standard_library=False,
        answers=(answers,), max_project_share=1.0, fim_share=1.0, fim_tokens=(1, 2, 3, 4),
    )  # fmt: skip


def texts(recipe: DataRecipe, name: str) -> list[str]:
    from vermilion.models import catalog

    tokenizer = catalog.tokenizer_of(catalog.find(recipe.tokenizer))
    corpus = Corpus.open(recipe.output / name)
    return [tokenizer.decode(corpus[i].ids) for i in range(len(corpus))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_build_gives_corpora_a_manifest_and_a_line_per_file(recipe: DataRecipe) -> None:
    steps: list[tuple[str, int, int]] = []
    manifest = build(recipe, lambda *step: steps.append(step))
    assert texts(recipe, "code") == [function("one"), function("two"), function("own")]
    assert texts(recipe, "docs") == ["Some words here. " * 30]
    assert texts(recipe, "answers")[0].endswith("hello there")
    assert manifest == json.loads((recipe.output / "manifest.json").read_text())
    assert [p["licence"] for p in manifest["projects"]] == ["MIT"] * 3
    assert (
        manifest["projects"][0]["sha256"]
        == hashlib.sha256(recipe.packages[0].archive.read_bytes()).hexdigest()
    )  # type: ignore[union-attr]
    rows = [json.loads(line) for line in (recipe.output / "files.jsonl").read_text().splitlines()]
    assert sum(row["tokens"] for row in rows if row["project"] == "one") == sum(
        manifest["projects"][0]["tokens"].values()
    )
    assert {row["licence"] for row in rows} == {"MIT"}
    assert steps[-1][1] == steps[-1][2] and [s[0] for s in steps[:3]] == ["one", "two", "kept"]
    shards = manifest["corpora"]["code"]["sha256"]
    assert (
        shards["00000.tokens"]
        == hashlib.sha256((recipe.output / "code/00000.tokens").read_bytes()).hexdigest()
    )


def test_a_held_out_project_is_nowhere_in_training_not_even_as_a_copy(recipe: DataRecipe) -> None:
    manifest = build(recipe)
    assert manifest["held_out"] == ["kept"]
    assert texts(recipe, "held-out/code") == [function("kept"), function("shared")]
    trained = "".join(texts(recipe, "code") + texts(recipe, "fim") + texts(recipe, "docs"))
    assert "kept_" not in trained and "shared_" not in trained
    assert manifest["projects"][0]["refused"] == {"same": 1}


def test_the_same_recipe_gives_the_same_bytes_anywhere(recipe: DataRecipe, tmp_path: Path) -> None:
    build(recipe)
    again = replace(recipe, output=tmp_path / "again")
    build(again)
    assert contents(recipe.output) == contents(again.output)
    build(replace(again, seed=1))
    assert contents(recipe.output / "fim") != contents(again.output / "fim")


def test_an_interrupted_build_goes_on_behind_what_was_read(
    recipe: DataRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(recipe, output=tmp_path / "whole")
    build(whole)
    read: list[str] = []
    read_sdist = building.read_sdist

    def stops_at_the_second(label: tuple[str, str], *rest: Any) -> Any:
        if len(read) == 1:
            raise KeyboardInterrupt
        read.append(label[0])
        return read_sdist(label, *rest)

    monkeypatch.setattr(building, "read_sdist", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build(recipe)
    assert not (recipe.output / "manifest.json").exists()
    monkeypatch.setattr(
        building, "read_sdist", lambda label, *rest: read.append(label[0]) or read_sdist(label, *rest)
    )
    build(recipe)
    assert read == ["one", "two", "kept"]
    assert contents(recipe.output) == contents(whole.output)


def test_a_licence_that_is_not_allowed_is_refused_by_name(recipe: DataRecipe, tmp_path: Path) -> None:
    bad = sdist(tmp_path, "bad", {"a.py": function("a")}, "GPL-3.0-only")
    with pytest.raises(ConfigError, match=r"bad 1\.0 is under GPL-3\.0-only, which is not allowed"):
        build(replace(recipe, packages=(*recipe.packages, bad)))
    lying = sdist(tmp_path, "lying", {"a.py": function("a"), "COPYING": GPL})
    with pytest.raises(ConfigError, match=r"lying 1\.0 is under MIT AND GPL"):
        build(replace(recipe, packages=(lying,)))


def test_files_under_another_licence_are_left_out(recipe: DataRecipe, tmp_path: Path) -> None:
    files = {
        "good.py": function("good"),
        "inner/LICENSE": GPL,
        "inner/borrowed.py": function("borrowed"),
        "header.py": "# SPDX-License-Identifier: GPL-2.0\n" + function("header"),
        "words.py": "# under the GNU General Public License\n" + function("words"),
        "other/LICENSE": MIT,
        "other/fine.py": function("fine"),
        "third/LICENSE": "All rights reserved. " * 40,
        "third/closed.py": function("closed"),
        "pointer/license.rst": "See the file LICENSE at the top.",
        "pointer/open.py": function("open"),
    }
    build(replace(recipe, packages=(sdist(tmp_path, "mixed", files),)))
    assert texts(recipe, "code") == [function("good"), function("fine"), function("open")]


@pytest.mark.parametrize("path", ["../outside.py", "/etc/outside.py", "a/../../outside.py", "..\\outside.py"])
def test_an_archive_with_a_path_that_leads_out_is_refused_whole(tmp_path: Path, path: str) -> None:
    archive = tmp_path / "evil-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("evil-1.0/fine.py", path):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"a=1"))
    with pytest.raises(ConfigError, match="leads out of the archive"):
        list(read_texts(archive))
    assert list(tmp_path.iterdir()) == [archive]


def test_links_and_large_files_in_an_archive_are_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "odd-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("odd-1.0/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        large = tarfile.TarInfo("odd-1.0/large.py")
        large.size = (1 << 20) + 1
        tar.addfile(large, io.BytesIO(b"#" * large.size))
        bytes_ = tarfile.TarInfo("odd-1.0/latin.py")
        bytes_.size = 1
        tar.addfile(bytes_, io.BytesIO(b"\xe9"))
    assert list(read_texts(archive)) == []
    archive.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="not a sound archive"):
        list(read_texts(archive))


def test_an_archive_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    package = sdist(tmp_path, "some_name", {"a.py": ""})
    assert fetch_sdist("some-name", "1.0", tmp_path).path == package.archive
    with pytest.raises(ConfigError, match="no such file"):
        building._sdist(replace(package, archive=tmp_path / "none.tar.gz"), tmp_path)


def test_an_archive_is_fetched_by_pip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    made = tmp_path / "made"
    made.mkdir()
    archive = sdist(made, "Some.Name", {"a.py": ""}).archive
    assert archive is not None

    def pip(command: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if command[-1] != "some-name==1.0":
            return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: No matching distribution")
        Path(command[command.index("--dest") + 1], archive.name).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    folder = tmp_path / "downloads"
    first = fetch_sdist("some-name", "1.0", folder)
    assert fetch_sdist("some-name", "1.0", folder) == first and len(calls) == 1
    assert first.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert "--no-deps" in calls[0] and "--no-binary" in calls[0]
    with pytest.raises(ConfigError, match=r"could not download some-name==2\.0: ERROR: No matching"):
        fetch_sdist("some-name", "2.0", folder)
    assert list(folder.iterdir()) == [first.path], "nothing half done is left"


def test_text_of_an_evaluation_is_kept_out(recipe: DataRecipe, tmp_path: Path) -> None:
    problem = "has close elements: check if any two numbers are closer than the given threshold"
    evaluation = tmp_path / "Eval.jsonl"
    evaluation.write_text(json.dumps({"prompt": problem, "n": 3}))
    leaked = function("leaked") + f"# {problem.upper()}\n"
    twelve = function("twelve") + "# " + " ".join(problem.split()[:12]) + "\n"
    package = sdist(tmp_path, "leaky", {"leaked.py": leaked, "twelve.py": twelve})
    answer = tmp_path / "answers.jsonl"
    rows = [{"prompt": "hi", "response": problem}, {"prompt": "hi", "response": "clean"}]
    answer.write_text("\n".join(map(json.dumps, rows)))
    changed = replace(recipe, packages=(package,), evaluations=(str(evaluation),), answers=(answer,))
    manifest = build(changed)
    assert texts(changed, "code") == [twelve]
    assert len(texts(changed, "answers")) == 1
    assert manifest["projects"][0]["refused"] == {"evaluation": 1}
    with pytest.raises(ConfigError, match="neither a file nor an installed"):
        build(replace(recipe, evaluations=("no-such-thing",)))


def test_grams_split_over_prompt_and_solution_are_found(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text(json.dumps({"prompt": "a b c d e f g ", "solution": "h i j k l m n"}))
    found = Decontamination.of_files([file])
    assert found.hits("d e f g h i j k l m n".replace("d ", "b c d ")) and not found.hits(
        "d e f g h i j k l m n"
    )


def test_near_doubles_are_found_and_different_texts_are_not() -> None:
    duplicates = Deduplicator(0.8, seed=0)
    assert duplicates.refusal_of(function("a", 200)) == ""
    assert duplicates.refusal_of(function("a", 200).replace(" = ", "=")) == "same"
    assert duplicates.refusal_of(function("a", 200) + "x = 1\n") == "similar"
    assert duplicates.refusal_of(function("b", 200)) == ""


def test_no_project_gives_more_than_its_share() -> None:
    allowed = capped({"a": 1000, "b": 100, "c": 100, "d": 0}, 0.4)
    assert allowed["b"] == allowed["c"] == 100
    assert 0.38 <= allowed["a"] / sum(allowed.values()) <= 0.4
    assert capped({"a": 10, "b": 10}, 0.5) == {"a": 10, "b": 10}
    with pytest.raises(ConfigError, match=r"2 projects cannot each stay within 0\.15"):
        capped({"a": 1000, "b": 100}, 0.15)


def test_too_few_projects_are_told_before_any_is_read(recipe: DataRecipe) -> None:
    with pytest.raises(ConfigError, match=r"3 projects cannot each stay within 0\.3 of the whole"):
        build(replace(recipe, standard_library=True, max_project_share=0.3))
    assert not recipe.output.exists()


def test_the_cap_holds_in_a_build(recipe: DataRecipe, tmp_path: Path) -> None:
    many = {f"f{i}.py": function(f"big{i}") for i in range(20)}
    packages = [sdist(tmp_path, "big", many)]
    packages += [sdist(tmp_path, f"p{i}", {"a.py": function(f"small{i}")}) for i in range(4)]
    manifest = build(replace(recipe, packages=tuple(packages), max_project_share=0.4))
    tokens = [project["tokens"].get("code", 0) for project in manifest["projects"]]
    assert 0.2 < tokens[0] / sum(tokens) <= 0.4


def test_gaps_are_given_as_suffix_prefix_middle(recipe: DataRecipe) -> None:
    build(replace(recipe, fim_share=2.5))
    corpus = Corpus.open(recipe.output / "fim")
    assert len(corpus) > len(texts(recipe, "code"))
    for index in range(len(corpus)):
        row = corpus[index]
        ids = list(row.ids)
        assert ids[:2] == [1, 2] and 3 in ids[: row.num_prompt] and ids[-1] == 4
        assert row.num_prompt < len(ids) - 1 <= 2 * recipe.fim_length
        before = bytes(_text(recipe, ids[ids.index(3) + 1 : row.num_prompt]))
        middle = bytes(_text(recipe, ids[row.num_prompt : -1]))
        assert any(
            (before + middle).decode() in text for text in texts(recipe, "code") + texts(recipe, "docs")
        )


def test_other_languages_are_code_where_the_recipe_names_them(recipe: DataRecipe, tmp_path: Path) -> None:
    rights = "/* Copyright me.\n * Licence: MIT */\n\n// More of the licence\n"
    words = function("shared").replace("def shared():", "void shared() {")
    package = sdist(tmp_path, "mixed", {"a.c": rights + words, "b.rs": words[::-1], "c.py": function("c")})
    for languages, paths in ((("python",), ["c.py"]), (("python", "c"), ["a.c", "c.py"])):
        build(replace(recipe, packages=(package,), languages=languages))
        rows = [json.loads(line) for line in (recipe.output / "files.jsonl").read_text().splitlines()]
        assert sorted(row["path"] for row in rows if row["kind"] == "code") == paths
    assert all("rights" not in text and "Copyright" not in text for text in texts(recipe, "code"))
    with pytest.raises(ConfigError, match="allowed: any of python"):
        replace(recipe, languages=("cobol",))


def _text(recipe: DataRecipe, ids: list[int]) -> bytes:
    from vermilion.models import catalog

    return catalog.tokenizer_of(catalog.find(recipe.tokenizer)).decode(ids).encode()


def test_tasks_have_exact_answers(recipe: DataRecipe) -> None:
    changed = replace(recipe, tasks=(Tasks("basic_arithmetic", 5, {"max_terms": 2}),))
    assert build(changed)["corpora"]["tasks"]["documents"] == 5
    for text in texts(changed, "tasks"):
        assert text.rstrip()[-1].isdigit()
    with pytest.raises(ConfigError, match="tasks: no_such_task"):
        build(replace(recipe, tasks=(Tasks("no_such_task", 5),)))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("License-Expression: MIT OR GPL-2.0\n", "MIT OR GPL-2.0"),
        ("Classifier: License :: OSI Approved :: BSD License\n", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved\nLicense: Apache 2.0\n", "Apache-2.0"),
        ("License: LGPL\n", "LGPL"),
        ("Name: x\n", "MIT"),
    ],
)
def test_the_metadata_says_the_licence(metadata: str, expected: str) -> None:
    assert licence_of_metadata(metadata, [MIT]) == expected


def test_a_licence_expression_is_met_as_spdx_says() -> None:
    assert is_allowed("MIT OR GPL-2.0", PERMISSIVE) and not is_allowed("MIT AND GPL-2.0", PERMISSIVE)
    assert not is_allowed("(MIT OR GPL-2.0) AND ISC", PERMISSIVE) and not is_allowed("unknown", PERMISSIVE)
    assert licence_of_text("hello") == "unknown" and licence_of_text(MIT + GPL) == "GPL"
    assert licence_of_file(PurePosixPath("a/b.py"), "", "MIT", {PurePosixPath("a"): "ISC"}) == "ISC"


def test_files_that_nobody_wrote_or_reads_are_dropped() -> None:
    paths = ["a/_vendor/b.py", "x_pb2.py", "a/test_data/b.py", "pkg.egg-info/a.md", "pkg/_version.py"]
    assert not any(is_wanted_path(PurePosixPath(path)) for path in paths)
    assert is_wanted_path(PurePosixPath("src/pkg/core.py"))
    assert refusal_of_text("short") == "size"
    assert refusal_of_text("x" * 500) == "long lines"
    assert refusal_of_text("1234\n" * 100) == "digits"
    assert refusal_of_text("# generated by a tool\n" + function("a")) == "generated"
    assert refusal_of_text(function("a")) == ""
    assert without_header("#!/bin/python\n# Copyright me\n\nx = 1") == "\nx = 1".lstrip("\n")
    assert without_header("# about x\nx = 1") == "# about x\nx = 1"
    assert without_header("// Copyright me\n/* and\nyou */\n\nint x;", ".c") == "int x;"
    assert without_header("// about x\nint x;", ".c") == "// about x\nint x;"


def test_the_shipped_recipes_are_sound() -> None:
    for name in ("data", "fim-data"):
        recipe = load(DataRecipe, RECIPES / f"{name}.toml")
        assert any(package.held_out for package in recipe.packages)
        assert sum(not package.held_out for package in recipe.packages) * recipe.max_project_share >= 1


def test_the_command_prints_the_folder_alone_on_stdout(
    recipe: DataRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    packages = ", ".join(
        f'{{name = "{p.name}", version = "1.0", archive = "{p.archive}"}}' for p in recipe.packages
    )
    file.write_text(
        f'output = "{recipe.output}"\ntokenizer = "{recipe.tokenizer}"\nstandard_library = false\n'
        f"fim_tokens = [1, 2, 3, 4]\nmax_project_share = 1.0\npackages = [{packages}]\n"
    )
    build_data.build(file, ["fim_share=0.0"])
    captured = capsys.readouterr()
    assert captured.out == f"{recipe.output}\n"
    assert "code: 5 documents" in captured.err and "fim: 0 documents" in captured.err


def test_bad_settings_are_named(tmp_path: Path) -> None:
    twice = (Package("a", "1"), Package("a", "2"))
    for change, said in (
        ({"packages": twice}, "stand there once"),
        ({"max_project_share": 0.0}, "max_project_share"),
        ({"fim_tokens": (1,)}, "four ids"),
    ):
        with pytest.raises(ConfigError, match=said):
            DataRecipe(tmp_path, **change)  # type: ignore[arg-type]
