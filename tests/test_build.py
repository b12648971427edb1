"""The build at first use when things go wrong: each in a process without gradreg_fast, with a cache of its own."""

import multiprocessing
import os
import shutil
import tempfile
import textwrap
from pathlib import Path

import pytest

import gradreg_fast

ROOT = Path(gradreg_fast.__file__).parents[1]
STEP = """
import torch, gradreg_fast
model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
y, g = gradreg_fast.value_and_vjp(model, torch.ones(4, 2))
(y.sum() + g.square().sum()).backward()
assert all(p.grad is not None for p in model.parameters())
"""
ASK = "from gradreg_fast.backend import library; print('compiled' if library()[0] else library()[1])"
FAKE_COMPILER = """\
#!/bin/sh
case " $* " in *" --version "*) echo fake 1.0; exit 0;; esac
echo call >> "$FAKE_CALLS"
{work}
"""


SETTING = """
import os, sys
os.environ.clear()
os.environ.update({environment})
sys.path.insert(0, {root!r})
for stream, path in ((1, {out!r}), (2, {error!r})):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
"""
PROCESSES = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
PROCESSES.set_forkserver_preload(["torch"])


@pytest.fixture
def run(tmp_path):
    """Starts these lines in a process: itself, and the files with what it prints."""

    def run(lines, cache, **environment):
        env = {**os.environ, "GRADREG_FAST_CACHE": str(cache), "MAX_JOBS": "1", **environment}
        env = {name: value for name, value in env.items() if value is not None}
        out, error = (Path(tempfile.mkdtemp(dir=tmp_path)) / "said" for _ in range(2))
        setting = SETTING.format(environment=env, root=str(ROOT), out=str(out), error=str(error))
        process = PROCESSES.Process(target=exec, args=(setting + textwrap.dedent(lines), {}))
        process.start()
        return process, out, error

    return run


def finished(started):
    process, out, error = started
    process.join(timeout=300)
    assert process.exitcode == 0, error.read_text()
    return out.read_text().strip(), error.read_text()


@pytest.fixture
def compiler(tmp_path):
    """A compiler of our own making: call it with the shell lines that are its work."""

    def make(work):
        path = tmp_path / "c++"
        path.write_text(FAKE_COMPILER.format(work=work))
        path.chmod(0o755)
        return {"CXX": str(path), "FAKE_CALLS": str(tmp_path / "calls")}

    return make


def calls(tmp_path):
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


pytestmark = pytest.mark.skipif(
    any((ROOT / "gradreg_fast").glob("_C*.so")), reason="a library compiled ahead of time leaves nothing to build"
)


def test_without_a_compiler_pytorch_serves_in_silence(run, tmp_path):
    out, error = finished(run(STEP + ASK, tmp_path / "cache", CXX=None, PATH=""))
    assert "no C++ compiler" in out
    assert error == ""


def test_a_named_compiler_that_is_not_there(run, tmp_path):
    out, _ = finished(run(STEP + ASK, tmp_path / "cache", CXX="no-such-compiler"))
    assert "no-such-compiler" in out


def test_a_broken_compiler_is_told_once_and_not_tried_again(run, tmp_path, compiler):
    broken = compiler("echo 'fatal error: broken' >&2; exit 1")
    out, error = finished(run(STEP + ASK, tmp_path / "cache", **broken))
    assert "fatal error: broken" in out
    assert "build.log" in error
    tried = calls(tmp_path)
    assert tried > 0
    log = next((tmp_path / "cache").rglob("build.log")).read_text()
    assert "fatal error: broken" in log and "exit status 1" in log

    out, error = finished(run(STEP + ASK, tmp_path / "cache", **broken))
    assert "an earlier build failed" in out
    assert error == ""
    assert calls(tmp_path) == tried


def test_an_explicit_choice_of_what_cannot_be_built_raises(run, tmp_path, compiler):
    broken = compiler("exit 1")
    lines = """
    import torch, gradreg_fast
    try:
        gradreg_fast.value_and_vjp(torch.nn.Linear(2, 1), torch.ones(4, 2))
    except RuntimeError as error:
        print(error)
    """
    out, _ = finished(run(lines, tmp_path / "cache", GRADREG_FAST_BACKEND="cpp", **broken))
    assert "backend 'cpp' cannot be used" in out and "build.log" in out


def test_a_cache_that_cannot_be_written(run, tmp_path):
    obstacle = tmp_path / "file"
    obstacle.write_text("")  # no folder can be made below a file, by root neither
    out, _ = finished(run(STEP + ASK, obstacle / "cache"))
    assert "cannot be used" in out


def test_two_processes_wait_for_one_build(run, tmp_path, compiler):
    slow = compiler('sleep 0.2; while [ $# -gt 1 ]; do if [ "$1" = -o ]; then : > "$2"; fi; shift; done')
    both = [run(ASK, tmp_path / "cache", **slow) for _ in range(2)]
    for process in both:
        out, _ = finished(process)
        assert "cannot be loaded" in out  # an empty file is no library, but there is one
    from gradreg_fast import build

    assert calls(tmp_path) == len(build.source_names(None, build.cpu_capability())) + 1
    (folder,) = (tmp_path / "cache").iterdir()
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".log", ".so"]  # the lock; nothing unfinished


def test_import_builds_nothing(run, tmp_path):
    out, error = finished(run("import gradreg_fast; print('imported')", tmp_path / "cache"))
    assert out == "imported" and error == ""
    assert not (tmp_path / "cache").exists()


def test_a_change_of_compiler_is_another_library(tmp_path, compiler, monkeypatch):
    from gradreg_fast import build

    sources = build.source_folder()
    mine = compiler("exit 0")["CXX"]
    assert build.cache_key(sources, [mine]) == build.cache_key(sources, [mine])
    assert build.cache_key(sources, [mine]) != build.cache_key(sources, [mine, "-m32"])


def test_a_build_at_first_use_is_for_one_instruction_set(run, tmp_path, compiler):
    recording = compiler('echo "$*" >> "$FAKE_CALLS"; exit 1')
    finished(run(ASK, tmp_path / "cache", GRADREG_FAST_CPU_CAPABILITY="baseline", **recording))
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.endswith("-baseline")
    said = (tmp_path / "calls").read_text()
    assert "mlp_baseline.cpp" in said and "-DGRADREG_FAST_CAPABILITY=0 " in said
    assert "avx2.cpp" not in said and "avx512.cpp" not in said


def test_a_build_ahead_of_time_is_for_all():
    from gradreg_fast import build

    assert sorted(build.source_names(None, None)) == sorted(build.SOURCES)
    shares = [build.source_names(None, capability) for capability in build.CAPABILITIES]
    assert set().union(*shares) == set(build.SOURCES)
    assert [sum("mlp_" in name for name in share) for share in shares] == [1, 1, 1]


def test_every_source_is_listed():
    from gradreg_fast import build

    sources = build.source_folder()
    there = {str(path.relative_to(sources)) for path in sources.rglob("*.c*") if path.suffix in (".cpp", ".cu")}
    assert there == {*build.SOURCES, *build.CUDA_SOURCES}


def test_cuda_sources_do_not_matter_to_a_library_without_them(tmp_path):
    from gradreg_fast import build

    copy, compiler = tmp_path / "csrc", build.find_compiler()
    shutil.copytree(build.source_folder(), copy)
    before = build.cache_key(copy, compiler)
    (copy / "cuda" / "runtime.cu").write_text("")
    assert build.cache_key(copy, compiler) == before
    (copy / "library.cpp").write_text("")
    assert build.cache_key(copy, compiler) != before


def test_cuda_kernels_need_a_torch_that_has_cuda(monkeypatch):
    from gradreg_fast import build

    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(build.BuildError, match="is built without CUDA"):
        build.find_nvcc()


def test_nvcc_is_looked_for(monkeypatch, tmp_path):
    from gradreg_fast import build

    monkeypatch.setattr("torch.version.cuda", "13.0")
    for folder in ("home", "path"):
        program = tmp_path / folder / "bin" / "nvcc"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert build.find_nvcc() == str(tmp_path / "path" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_nvcc() == str(tmp_path / "home" / "bin" / "nvcc")


@pytest.mark.parametrize("version, advice", [("13.0", "pip install nvidia-cuda-nvcc=="), ("12.8", "toolkit 12.8")])
def test_where_to_get_nvcc(monkeypatch, version, advice):
    from gradreg_fast import build

    monkeypatch.setattr("torch.version.cuda", version)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda *arguments, **keywords: None)
    with pytest.raises(build.BuildError, match=f"no nvcc in .*{advice}"):
        build.find_nvcc()


def test_cuda_kernels_that_do_not_compile_leave_the_others(monkeypatch):
    from gradreg_fast import build

    def load(sources, compiler, nvcc):
        if nvcc:
            raise build.BuildError("nvcc broke")
        return "the library without"

    monkeypatch.setattr(build, "installed_library", lambda sources: None)
    monkeypatch.setattr(build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(build, "_load", load)
    assert build.load() == ("the library without", "nvcc broke")


@pytest.mark.parametrize(
    "holds, nvcc, found",
    [
        (b"cuda_problem", "works", ("installed", "")),
        (b"", "works", ("built with works", "")),
        (b"", "broken", ("installed", "nvcc broke")),
        (b"", None, ("installed", "no nvcc")),
    ],
)
def test_an_installed_library_without_cuda_kernels_stands_back(monkeypatch, tmp_path, holds, nvcc, found):
    from gradreg_fast import build

    def find_nvcc():
        if nvcc is None:
            raise build.BuildError("no nvcc")
        return nvcc

    def load(sources, compiler, nvcc):
        if nvcc == "broken":
            raise build.BuildError("nvcc broke")
        return f"built with {nvcc}"

    installed = tmp_path / build.FILE
    installed.write_bytes(holds)
    monkeypatch.setattr(build, "installed_library", lambda sources: installed)
    monkeypatch.setattr(build, "_installed_module", lambda: "installed")
    monkeypatch.setattr(build, "find_nvcc", find_nvcc)
    monkeypatch.setattr(build, "_load", load)
    assert build.load() == found


def test_nvcc_makes_the_objects_of_cuda_sources():
    from gradreg_fast import build

    compilations, link = build.commands(
        Path("csrc"), build.CUDA_SOURCES, ["c++"], "nvcc", Path("objects"), Path("library.so")
    )
    by_nvcc = [command for command in compilations if command[0] == "nvcc"]
    assert by_nvcc == [command for command in compilations if command[-3].endswith(".cu")] != []
    assert all(
        f"-gencode=arch=compute_80,code={code}" in command for command in by_nvcc for code in ("sm_80", "compute_80")
    )
    assert link[0] == "nvcc" and "-cudart=static" in link  # which knows where its runtime is
    assert {command[-1] for command in compilations} <= set(link)
