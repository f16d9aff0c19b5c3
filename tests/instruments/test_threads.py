"""How many threads PyTorch gets: what is asked for, OMP_NUM_THREADS, cores, and the quota of a control group."""

import os

import pytest

from nystra_bench.errors import UserError
from nystra_bench.instruments import threads
from nystra_bench.instruments.environment import usable_cores
from nystra_bench.instruments.threads import cpu_quota, default_threads, thread_count


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(("said", "expected"), [("1", 1), ("1,4", 1), (" 1 ", 1), ("999999", os.cpu_count())])
def test_openmps_own_variable_decides(unset, said, expected):
    unset.setenv("OMP_NUM_THREADS", said)
    assert default_threads() == expected


@pytest.mark.parametrize("said", ["", "0", "-1", "many", "1.5"])
def test_what_is_no_number_of_threads_is_left_aside(unset, said):
    unset.setenv("OMP_NUM_THREADS", said)
    assert default_threads() == usable_cores()


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.0, 1), (1.99, 1), (2.0, 2), (63.0, 8)])
def test_no_more_threads_than_a_quota_pays_for(unset, quota, expected):
    unset.setattr(threads, "usable_cores", lambda: 8)
    unset.setattr(threads, "cpu_quota", lambda: quota)
    assert default_threads() == expected


def test_what_is_asked_for_wins(unset):
    unset.setenv("OMP_NUM_THREADS", "2")
    assert thread_count(1) == 1
    assert thread_count(None) == thread_count() == default_threads()


@pytest.mark.parametrize("wanted", [0, -1, 99999999999, 10**400, 1.5, "many", True, float("nan"), [1]])
def test_what_is_no_number_of_threads_is_refused(wanted):
    with pytest.raises(UserError) as caught:
        thread_count(wanted)
    assert f"device.threads={wanted}" in str(caught.value)
    assert "from 1 on" in str(caught.value) and f"{os.cpu_count()}" in str(caught.value)


# ------------------------------------------------------------------ control groups


@pytest.fixture
def system(tmp_path):
    """Lays out control groups as a kernel shows them; gives the folder that stands for /proc/self."""

    def lay_out(cgroup, mount, files):
        process = tmp_path / "self"
        process.mkdir(exist_ok=True)
        (process / "cgroup").write_text(cgroup)
        (process / "mountinfo").write_text(mount.format(at=tmp_path / "sys"))
        for name, content in files.items():
            (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / name).write_text(content)
        return process

    return lay_out


V2 = "24 1 0:22 / {at} rw,nosuid - cgroup2 cgroup2 rw\n25 1 0:5 / /dev rw - tmpfs tmpfs rw\n"
V1 = "32 1 0:29 / {at} rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n33 1 0:3 / /sys/m rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),  # a group above binds, too
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ({"a/c/cpu.max": "100000 100000\n"}, None),  # another's
        ({"cpu.max": "300000 100000\n"}, 3.0),  # a container's own root
        ({"a/b/cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_version_2(system, files, quota):
    assert cpu_quota(system("0::/a/b\n", V2, files)) == quota


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"a/cpu.cfs_quota_us": "250000\n", "a/cpu.cfs_period_us": "100000\n"}, 2.5),
        ({"a/cpu.cfs_quota_us": "-1\n", "a/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}, 1.0),
        ({}, None),
    ],
)
def test_the_quota_of_version_1(system, files, quota):
    assert cpu_quota(system("4:memory:/x\n1:cpu,cpuacct:/a\n0::/\n", V1, files)) == quota


def test_a_group_whose_path_is_told_as_outside_of_a_container(system):
    """Version 1 tells the host's path; the mount shows the container's group as its root."""
    mount = V1.replace(" / {at}", " /docker/abc {at}")
    files = {"cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(system("1:cpu,cpuacct:/docker/abc\n", mount, files)) == 2.0


def test_a_system_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path / "nothing") is None
