"""`bench read`: a long file of bars parsed, and read again from the cache, each time in a process of its own."""

import tempfile
import time
from pathlib import Path

from host.bench.acting import write_m1_csv
from host.bench.kernels import read_sample_bars
from host.bench.options import BenchOptions
from host.bench.process import BenchRow
from host.data.csv_reader import cache_entry, read_bars
from host.data.formats import ReadOptions
from host.processes import ReportProgress, watch_process


def bench_read(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench read`: CPU seconds and peak memory of the first reading, and of the second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "EURUSD_M1.csv"
        write_m1_csv(path, read_sample_bars(), options.read_bars)
        megabytes, entry = round(path.stat().st_size / 1e6, 1), cache_entry(path, ReadOptions(), "")[0]
        try:
            rows = [watch_process(read_once, path, lambda _: None) for _ in range(2)]
        finally:
            if entry is not None:
                entry.unlink(missing_ok=True)
    return [{"from": name, "file_mb": megabytes, **row} for name, row in zip(("file", "cache"), rows, strict=True)]


def read_once(path: Path, report: ReportProgress) -> BenchRow:
    """Read a file; its CPU seconds."""
    report(0.0)
    begin = time.process_time()
    bars, _ = read_bars(path)
    return {"bars": len(bars.time), "cpu_s": round(time.process_time() - begin, 4)}
