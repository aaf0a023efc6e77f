"""Which torch a machine gets, and what nvidia-smi's answers are read as."""

import sys

import pytest

from tools._torch_choice import (
    INDEX,
    QUERY,
    Machine,
    ask_nvidia_smi,
    choose,
    dotted,
    install_arguments,
    read_listing,
)

NEW, MIDDLE, OLD, ANCIENT = (580, 95, 5), (572, 83), (551, 61), (472, 12)


@pytest.mark.parametrize(
    "capability, driver, build",
    [
        ((3, 5), NEW, "cpu"),  # Kepler
        ((5, 2), NEW, "cu126"),  # Maxwell
        ((6, 1), NEW, "cu126"),  # Pascal
        ((7, 0), NEW, "cu126"),  # Volta
        ((7, 5), NEW, "cu130"),  # Turing
        ((8, 6), NEW, "cu130"),  # Ampere
        ((12, 0), NEW, "cu130"),  # Blackwell
        ((13, 3), NEW, "cu130"),
        ((6, 1), MIDDLE, "cu126"),
        ((7, 5), MIDDLE, "cu128"),
        ((8, 9), MIDDLE, "cu128"),
        ((12, 0), MIDDLE, "cu128"),
        ((6, 1), OLD, "cu126"),
        ((8, 9), OLD, "cu126"),
        ((12, 0), OLD, "cpu"),  # no build that this driver can run knows the card
        ((6, 1), ANCIENT, "cpu"),
        ((8, 6), ANCIENT, "cpu"),
    ],
)
@pytest.mark.parametrize("os_name", ["Linux", "Windows"])
def test_card_and_driver_choose_the_build(os_name, capability, driver, build):
    choice = choose(Machine(os_name, (capability,), driver))
    assert choice.build == build
    assert dotted(capability) in choice.reason and dotted(driver) in choice.reason


@pytest.mark.parametrize(
    "os_name, driver, build",
    [
        ("Linux", (580, 65, 6), "cu130"),
        ("Linux", (580, 64), "cu128"),
        ("Windows", (580, 1), "cu130"),
        ("Windows", (579, 99), "cu128"),
        ("Linux", (570, 26), "cu128"),
        ("Windows", (570, 26), "cu126"),
        ("Linux", (525, 60, 13), "cu126"),
        ("Linux", (525, 59), "cpu"),
        ("Windows", (528, 33), "cu126"),
        ("Windows", (528, 32), "cpu"),
    ],
)
def test_the_first_driver_of_each_build_depends_on_the_system(os_name, driver, build):
    assert choose(Machine(os_name, ((8, 6),), driver)).build == build


def test_the_newest_card_decides():
    assert choose(Machine("Linux", ((6, 1), (12, 0)), NEW)).build == "cu130"


@pytest.mark.parametrize(
    "machine, why",
    [
        (Machine("Linux"), "no NVIDIA card"),
        (Machine("Windows"), "no NVIDIA card"),
        (Machine("Linux", amd=True), "ROCm is not supported"),
        (Machine("Darwin"), "MPS is not supported"),
        (Machine("Windows", ((8, 6),), ANCIENT), "update it to 528.33"),
        (Machine("Linux", ((12, 0),), OLD), "update it to 570.26"),
        (Machine("Linux", ((3, 5),), NEW), "no build has code for this card"),
    ],
)
def test_the_cpu_is_chosen_with_the_reason(machine, why):
    choice = choose(machine)
    assert choice.build == "cpu" and why in choice.reason


@pytest.mark.parametrize(
    "build, os_name, reachable, expected",
    [
        ("cu130", "Linux", False, ["torch"]),  # PyPI's
        ("cu130", "Windows", False, ["torch", "--index-url", f"{INDEX}/cu130"]),
        ("cu128", "Linux", False, ["torch", "--index-url", f"{INDEX}/cu128"]),
        ("cu126", "Windows", True, ["torch", "--index-url", f"{INDEX}/cu126"]),
        ("cpu", "Linux", True, ["torch", "--index-url", f"{INDEX}/cpu"]),
        ("cpu", "Windows", True, ["torch", "--index-url", f"{INDEX}/cpu"]),
        ("cpu", "Linux", False, ["torch==2.13.0"]),
        ("cpu", "Darwin", True, ["torch==2.13.0"]),
    ],
)
def test_where_each_build_comes_from(build, os_name, reachable, expected):
    assert install_arguments(build, os_name, reachable) == ["install", *expected]


@pytest.mark.parametrize(
    "text, capabilities, driver",
    [
        ("8.6, 560.35.03\n", ((8, 6),), (560, 35, 3)),
        ("12.0, 572.83\r\n", ((12, 0),), (572, 83)),
        ("6.1, 580.95.05\n8.9, 580.95.05\n", ((6, 1), (8, 9)), (580, 95, 5)),
        (
            "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n7.5, 535.183.01\n",
            ((7, 5),),
            (535, 183, 1),
        ),
    ],
)
def test_the_lines_of_nvidia_smi_are_read(text, capabilities, driver):
    listing = read_listing(text)
    assert (listing.capabilities, listing.driver, listing.note) == (capabilities, driver, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found",
        "[N/A], 550.54",
        'Field "compute_cap" is not a valid field to query.',
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "Failed to initialize NVML: Driver/library version mismatch",
    ],
)
def test_other_answers_name_no_card_and_are_told(text):
    listing = read_listing(text)
    assert listing.capabilities == () and (text or "nothing") in listing.note


def test_the_program_is_asked_and_its_failures_are_told():
    code = "import sys; print('8.6, 560.35.03' if sys.argv[1:] == {!r} else sys.argv)"
    assert ask_nvidia_smi([sys.executable, "-c", code.format(list(QUERY))]).capabilities == (
        (8, 6),
    )
    failing = [sys.executable, "-c", "raise SystemExit('no driver')"]
    assert "no driver" in ask_nvidia_smi(failing).note
    assert "did not answer" in ask_nvidia_smi(["/no/such/nvidia-smi"]).note
