"""The measurement of a judge's throughput, with few requests; its times are for people to read."""

from steer.bench.judge import vlm_throughput


def test_requests_overlap_and_cannot_be_faster_than_the_server() -> None:
    one, eight = vlm_throughput(requests=16, concurrency=(1, 8), latency=0.05, size=8)
    assert (one["under way"], eight["under way"]) == (1, 8)
    for row, c in ((one, 1), (eight, 8)):
        seconds, share = row["seconds"], row["of the most"]
        assert isinstance(seconds, float) and seconds >= 16 / c * 0.05
        assert isinstance(share, float) and 0 < share <= 1
