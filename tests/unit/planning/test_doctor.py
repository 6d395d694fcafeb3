"""The doctor's verdicts on machines that are described, and on this one."""

import sys

import pytest

from twotower.planning import probe
from twotower.planning.doctor import (
    check_data,
    check_disk,
    check_faiss,
    check_onnxruntime,
    check_packages,
    check_python,
    check_torch,
    check_writable,
    examine,
)

H200 = {
    "name": "NVIDIA H200",
    "capability": [9, 0],
    "memory": 150_000_000_000,
    "bf16": True,
    "works": True,
}
CPU_TORCH = {"version": "2.13.0", "cuda": None, "devices": []}
GPU_TORCH = {"version": "2.13.0", "cuda": "13.0", "devices": [H200]}
CPU_FAISS = {"version": "1.15.1", "num_gpus": 0, "works": True, "cagra": False}
GPU_FAISS = {"version": "1.15.1", "num_gpus": 1, "works": True, "cagra": False}
DRIVER = ("NVIDIA H200",)


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 7), "ok"), ((3, 14, 0), "fail")],
)
def test_python(version, state):
    finding = check_python(version)
    assert finding.state == state
    assert bool(finding.remedy) == (state == "fail")


class TestPackages:
    REQUIRED = ("hydra-core<1.4,>=1.3.2", "tqdm>=4", "faiss-cpu>=1.12; extra == 'cpu'")

    def test_right(self):
        finding = check_packages(self.REQUIRED, {"hydra-core": "1.3.8", "tqdm": "4.70.1"})
        assert finding.state == "ok"
        assert finding.detail == "hydra-core 1.3.8, tqdm 4.70.1"

    def test_missing_and_out_of_bounds_are_both_named(self):
        finding = check_packages(self.REQUIRED, {"hydra-core": "1.4.0"})
        assert finding.state == "fail"
        assert finding.detail == "hydra-core 1.4.0 is not <1.4,>=1.3.2; tqdm is missing"


class TestTorch:
    def test_cpu(self):
        finding = check_torch(CPU_TORCH, ())
        assert (finding.state, finding.detail) == ("ok", "2.13.0, CPU build, no GPU")

    def test_gpu(self):
        finding = check_torch(GPU_TORCH, DRIVER)
        assert finding.state == "ok"
        assert finding.detail == "2.13.0, CUDA 13.0; NVIDIA H200 (150 GB, compute 9.0, bf16)"

    def test_gpu_without_bf16(self):
        device = {**H200, "name": "Tesla T4", "capability": [7, 5], "bf16": False}
        finding = check_torch({**GPU_TORCH, "devices": [device]}, ("Tesla T4",))
        assert "compute 7.5, no bf16" in finding.detail

    def test_cpu_build_beside_a_gpu(self):
        finding = check_torch(CPU_TORCH, DRIVER)
        assert finding.state == "warn"
        assert "the driver shows NVIDIA H200, but torch is a CPU build" in finding.detail
        assert "CUDA build" in finding.remedy

    def test_cuda_build_that_does_not_reach_the_gpu(self):
        finding = check_torch({**GPU_TORCH, "devices": []}, DRIVER)
        assert finding.state == "warn"
        assert "torch does not reach it" in finding.detail
        assert "CUDA_VISIBLE_DEVICES" in finding.remedy

    def test_wrong_sum(self):
        finding = check_torch({**GPU_TORCH, "devices": [{**H200, "works": False}]}, DRIVER)
        assert finding.state == "fail"
        assert "came out wrong" in finding.detail

    def test_does_not_load(self):
        finding = check_torch({"error": "libcudart.so.13 not found (exit status 1)"}, ())
        assert finding.state == "fail"
        assert "libcudart.so.13" in finding.detail
        assert finding.remedy


class TestFaiss:
    def test_cpu(self):
        finding = check_faiss(CPU_FAISS, {"faiss-cpu": "1.15.1"}, ())
        assert (finding.state, finding.detail) == ("ok", "faiss-cpu 1.15.1, GPUs: 0")

    def test_gpu_with_cagra(self):
        finding = check_faiss({**GPU_FAISS, "cagra": True}, {"faiss-gpu-cuvs": "1.15.1"}, DRIVER)
        assert (finding.state, finding.detail) == ("ok", "faiss-gpu-cuvs 1.15.1, GPUs: 1, CAGRA")

    def test_several_wheels(self):
        installed = {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"}
        finding = check_faiss(GPU_FAISS, installed, DRIVER)
        assert finding.state == "fail"
        assert "overwrite each other's files" in finding.detail
        assert finding.remedy == (
            "`pip uninstall -y faiss-cpu faiss-gpu`, then "
            "`pip install -c constraints.txt -e '.[gpu]'`"
        )

    def test_cpu_wheel_beside_a_gpu(self):
        finding = check_faiss(CPU_FAISS, {"faiss-cpu": "1.15.1"}, DRIVER)
        assert finding.state == "warn"
        assert finding.remedy.startswith("`pip uninstall -y faiss-cpu`")
        assert ".[gpu]" in finding.remedy

    def test_wheel_without_code_for_this_gpu(self):
        error = {"error": "no kernel image is available for execution (exit status -6)"}
        finding = check_faiss(error, {"faiss-gpu-cu12": "1.14.1"}, DRIVER)
        assert finding.state == "fail"
        assert finding.detail.startswith("faiss-gpu-cu12 1.14.1 does not work here: no kernel")
        assert finding.remedy.startswith("`pip uninstall -y faiss-gpu-cu12`, then")

    def test_not_installed(self):
        finding = check_faiss({"error": "No module named 'faiss'"}, {}, ())
        assert finding.state == "fail"
        assert finding.remedy == "`pip install -c constraints.txt -e '.[cpu]'`"

    def test_wrong_answer(self):
        finding = check_faiss({**CPU_FAISS, "works": False}, {"faiss-cpu": "1.15.1"}, ())
        assert finding.state == "fail"
        assert "a search for known vectors found others" in finding.detail


def test_onnxruntime():
    found = {"version": "1.32.0", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
    assert check_onnxruntime(found).detail == "1.32.0, CUDA, CPU"
    assert check_onnxruntime({"error": "gone"}).state == "fail"


class TestPaths:
    def test_folder_to_be_made(self, tmp_path):
        assert check_writable(tmp_path / "a" / "runs").state == "ok"
        assert list(tmp_path.iterdir()) == []

    def test_file_in_the_way(self, tmp_path):
        (tmp_path / "runs").write_text("")
        finding = check_writable(tmp_path / "runs")
        assert finding.state == "fail"
        assert "is not a folder" in finding.detail

    def test_not_writable(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: False)
        finding = check_writable(tmp_path / "runs")
        assert finding.state == "fail"
        assert "is not writable" in finding.detail

    @pytest.mark.parametrize(
        ("free", "state"),
        [(10**10, "ok"), (10**10 - 1, "warn"), (10**9, "warn"), (10**9 - 1, "fail")],
    )
    def test_disk(self, free, state):
        assert check_disk(free).state == state

    def test_data(self, tmp_path, monkeypatch):
        missing = check_data(tmp_path / "gone")
        assert (missing.state, missing.detail) == ("fail", f"{tmp_path / 'gone'} does not exist")
        assert "is an empty folder" in check_data(tmp_path).detail
        (tmp_path / "ratings.csv").write_text("a\n")
        assert check_data(tmp_path).state == "ok"
        assert check_data(tmp_path / "ratings.csv").state == "ok"
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert "cannot be read" in check_data(tmp_path).detail


class TestThisMachine:
    def test_everything_is_looked_at(self, tmp_path):
        facts = probe.gather()
        findings = examine(facts, folder=tmp_path, data=tmp_path / "gone")
        assert [finding.name for finding in findings] == [
            "Python", "packages", "torch", "faiss", "onnxruntime",
            "runs/", "bundles/", "prepared/", "disk", "data",
        ]  # fmt: skip
        by_name = {finding.name: finding for finding in findings}
        assert by_name["Python"].state == by_name["packages"].state == "ok"
        assert by_name["data"].state == "fail"
        assert facts.installed["torch"].startswith(facts.probes["torch"]["version"].split("+")[0])
        assert all(finding.remedy for finding in findings if finding.state != "ok")

    def test_package_that_ends_the_process(self, monkeypatch, tmp_path):
        broken = tmp_path / "python"
        broken.write_text("#!/bin/sh\necho 'no kernel image' >&2\nkill -ABRT $$\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(broken))
        assert probe.gather().probes["faiss"] == {"error": "no kernel image (exit status -6)"}

    def test_package_that_hangs(self, monkeypatch, tmp_path):
        hanging = tmp_path / "python"
        hanging.write_text("#!/bin/sh\nexec sleep 60\n")
        hanging.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(hanging))
        monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
        facts = probe.gather()
        assert facts.probes["torch"] == {"error": "no answer within 0.2 seconds"}

    def test_driver(self, monkeypatch, tmp_path):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'NVIDIA H200'\necho 'NVIDIA H200'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(probe, "_probe", lambda package: {})
        assert probe.gather().driver == ("NVIDIA H200", "NVIDIA H200")
        tool.write_text("#!/bin/sh\nexit 9\n")
        assert probe.gather().driver == ()
        tool.unlink()
        assert probe.gather().driver == ()
