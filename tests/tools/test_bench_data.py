"""The benchmark of the data side runs and measures what it says."""

from tools.bench import bench_data


def test_every_part_gives_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_data, "ITEMS", 2)
    monkeypatch.setattr(bench_data, "SIDE", 8)
    monkeypatch.setattr(bench_data, "STEP", 0)
    lines = [
        *bench_data.bench_scan(tmp_path, 3),
        *bench_data.bench_cache(tmp_path),
        *bench_data.bench_start(tmp_path),
        *bench_data.bench_wait(tmp_path),
        *bench_data.bench_vae(32, base_dim=4),
    ]
    assert [line.split(",")[0].split(":")[0] for line in lines] == [
        "scan of 3 pictures",
        "cache item",
        "cache item",
        "  when first read",
        "  check of a header at the start",
        "  text of 150 tokens",
        "contents of 2 pictures of 2 MB",
        "  later starts",
        *["data wait per step"] * 5,
        *["VAE"] * 2,
    ]
