"""What the report says of a machine: compilers, page-locked memory, spilling drivers, proxies."""

import pytest

from library.anima_doctor import machine
from library.anima_doctor.machine import Compilers, compile_warnings, network_rows, pinned_warning
from tests.helpers.running import config_files, report

STUDIO = r"C:\Program Files\Microsoft Visual Studio\18\Community"


@pytest.mark.parametrize(
    "found, on_cuda, expected",
    [
        (Compilers(triton=True, cl=True), True, []),
        (Compilers(triton=False, cl=True), True, ["pip install triton-windows"]),
        (Compilers(triton=False, cl=True), False, []),
        (Compilers(triton=True, cl=False), True, ["Install Build Tools"]),
        (Compilers(True, False, STUDIO), True, [f"MSVC is in {STUDIO}, but"]),
        (Compilers(False, False), True, ["triton is not installed", "cl.exe was not found"]),
    ],
)
def test_compilers_that_are_missing_on_windows_are_named(found, on_cuda, expected):
    warnings = list(compile_warnings(found, on_cuda))
    assert len(warnings) == len(expected)
    assert all(words in text for words, text in zip(expected, warnings))
    assert all("leave compile out" in text for text in warnings)


@pytest.mark.parametrize("pinned, warned", [(0, False), (8e9, False), (8.1e9, True)])
def test_page_locked_memory_beyond_half_of_it_is_told(pinned, warned):
    warning = pinned_warning(pinned, 16e9)
    assert (warning is not None) is warned
    assert not warned or ("8.10 GB" in warning and "16.00 GB" in warning)


@pytest.mark.parametrize(
    "os_name, release, expected",
    [
        ("Windows", "11", True),
        ("Linux", "6.6.87.2-microsoft-standard-WSL2", True),
        ("Linux", "6.8.0-45-generic", False),
        ("Darwin", "24.1.0", False),
    ],
)
def test_drivers_spill_on_windows_and_below_it(os_name, release, expected):
    assert machine.spills(os_name, release) is expected


@pytest.mark.parametrize(
    "address, shown",
    [
        ("http://proxy.example.org:8080", "http://proxy.example.org:8080"),
        ("http://me:pass@word@proxy.example.org:8080/a?key=b", "http://***@proxy.example.org:8080"),
        ("me:password@proxy.example.org:8080", "***@proxy.example.org:8080"),
        ("socks5://127.0.0.1:1080", "socks5://127.0.0.1:1080"),
    ],
)
def test_a_proxy_is_shown_without_its_login(address, shown):
    assert list(network_rows({"https": address}, {})) == [("proxy for https", shown)]


def test_certificates_are_named_and_a_missing_file_of_them(tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text("")
    environ = {"SSL_CERT_FILE": str(file), "REQUESTS_CA_BUNDLE": "gone.pem", "PATH": "x"}
    rows = dict(network_rows({"no": "localhost"}, environ))
    assert rows["no proxy for"] == "localhost"
    assert rows["certificates (SSL_CERT_FILE)"] == str(file)
    assert rows["certificates (REQUESTS_CA_BUNDLE)"].startswith("gone.pem: does not exist")
    assert len(rows) == 3


def test_proxies_stand_in_the_report_where_something_is_to_be_fetched(
    demo, run_folder, monkeypatch
):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:password@proxy.example.org:8080")
    lacking = {"t5_tokenizer_dir": str(run_folder / "t5")}
    text, _ = report(config_files(demo, run_folder, lacking))
    assert "proxy for https" in text and "http://***@proxy.example.org:8080" in text
    assert "password" not in text
