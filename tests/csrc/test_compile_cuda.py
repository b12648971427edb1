"""What the check of compiled CUDA kernels notices; nothing is compiled here."""

import pytest

from gradreg_fast.kernels import Kernel

from .compile_cuda import TENSOR_CORES, faults_of, instances_of, machine_code

LOG = """\
ptxas info    : Compiling entry function '_Z4workf' for 'sm_80'
ptxas info    : Function properties for _Z4workf
    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 432 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4workd' for 'sm_90a'
ptxas info    : Function properties for _Z4workd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
SASS = """\
\tcode for sm_80
\t\tFunction : _Z4workf
        /*0000*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
\t\tFunction : _Z4workd
        /*0000*/                   FADD R4, R8, R12 ;
\tcode for sm_90a
\t\tFunction : _Z4workd
        /*0000*/                   FFMA R4, R8, R12, R4 ;
"""
KERNEL = Kernel("work", "", "cuda/work.cuh", {"registers": "40", "shared": "1024", "tensor": "float"})
FINE = {"registers": 40, "stack": 0, "shared": 1024, "spill": 0}


def needs(**figures):
    return instances_of(LOG.format(**FINE | figures))["_Z4workf", "sm_80"] | {"tensor": True, "stores": True}


def test_what_ptxas_tells():
    found = instances_of(LOG.format(**FINE))
    assert found["_Z4workf", "sm_80"] == {"registers": 40, "stack": 0, "shared": 1024, "spills": 0}
    assert found["_Z4workd", "sm_90a"]["registers"] == 32


def test_what_the_comment_allows_is_no_fault():
    assert faults_of(KERNEL, "void work(float)", needs()) == []


@pytest.mark.parametrize(
    "figures, fault",
    [
        ({"registers": 41}, "needs 41 of registers, allowed are 40"),
        ({"stack": 8}, "needs 8 of stack, allowed are 0"),
        ({"shared": 1025}, "needs 1025 of shared, allowed are 1024"),
        ({"spill": 4}, "spills 8 bytes"),
    ],
)
def test_what_it_does_not_allow_is_one(figures, fault):
    assert faults_of(KERNEL, "void work(float)", needs(**figures)) == [fault]


def test_a_kernel_that_came_to_nothing_is_noticed():
    (fault,) = faults_of(KERNEL, "void work(float)", needs() | {"stores": False})
    assert "stores nothing" in fault


def test_tensor_cores_are_used_where_they_are_meant_to_be():
    codes = machine_code(SASS)
    assert len(codes) == 3 and [key for key in codes if TENSOR_CORES.search(codes[key])] == [("_Z4workf", "sm_80")]
    assert faults_of(KERNEL, "void work(float)", needs() | {"tensor": False}) == ["has no tensor-core instructions"]
    assert faults_of(KERNEL, "void work(double)", needs()) == ["has unwanted tensor-core instructions"]
