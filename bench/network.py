"""The second image of a family over networks of several speeds: what is missing, all of it, and all of it by skopeo.

As ``partial``, whose ways these are; but the loopback between registry and store lets only so much through in a second, to
both sides together. Where bytes cost time, those that are not fetched are worth some.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench import partial, ratios
from bench.disk import private
from bench.family import served
from bench.local_registry import own_loopback
from bench.tables import promised, seconds, spread, table

_WAYS = ("parts", "full", "skopeo")
_RATES = (100, 300, 1_000)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rates", type=_numbers, default=_RATES, metavar="MBIT,…", help="megabits a second "
                        f"(default: {','.join(map(str, _RATES))})")
    parser.add_argument("--network-rounds", type=int, help="paired rounds at each rate (default: 3)")
    parser.add_argument("--maker", default="skopeo", metavar="SKOPEO", help="makes the images, as for partial (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=3, help="runs of one that strangers' load disturbs (default: %(default)s)")
    parser.add_argument("--disk-gib", type=float, default=16, help="size of the private file system (default: %(default)s)")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds = options.network_rounds or (1 if options.quick else 3)
    pair = partial.images(options)
    result: dict[str, Any] = {"rounds": rounds, "rates": list(options.rates), "runs": [], "images": partial.told_of(pair)}
    with served(options.cache, *pair, options.maker) as family:   # made, if it was not there, without a narrow network
        result["family"] = partial.facts(family)
    with private(options.cache, gib=options.disk_gib) as disk:
        for rate in options.rates:
            with own_loopback(rate), served(options.cache, *pair, options.maker) as family:
                print(f"   {rate} Mbit/s", flush=True)
                for number in range(rounds):
                    for way in _WAYS:
                        run = partial.run_of(options, disk, family, way, pair, result)
                        result["runs"].append({"rate": rate, "way": way, "round": number, **run})
                    options.keep(result)
    return result


def _walls(result: dict[str, Any], rate: int) -> dict[str, dict[int, float]]:
    return partial.by_round({"runs": [run for run in result["runs"] if run["rate"] == rate]}, "wall")


def targets(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """None of a quick run: its images are a few kilobytes."""
    if result["quick"]:
        return []
    return [row for rate in result["rates"] for row in partial.wall_targets(_walls(result, rate), f", {rate} Mbit/s")]


def page(result: dict[str, Any], pictures: Path | None) -> str:
    del pictures
    rows = []
    for rate in result["rates"]:
        walls = _walls(result, rate)
        by = {way: walls.get(way, {}) for way in _WAYS}
        against = [ratios.paired(by["parts"], by[other]) for other in _WAYS[1:]]
        rows.append((f"{rate:,} Mbit/s", *(seconds(ratios.median(by[way])) for way in _WAYS),
                     *("–" if each is None else spread(each.median, each.low, each.high) for each in against)))
    fetched = "; ".join(f"{partial.WAYS[way].label}: {n:,} bytes" for way, n in result.get("wire", {}).items())
    marked = sum(run["marked"] for run in result["runs"])
    return ("## The second image of a family, by the speed of the network\n\n"
            f"The images of the section before, over a loopback of so many megabits a second (`tc`, a token bucket). Over the wire: "
            f"{fetched}. {result['rounds']} rounds at each; {marked} of {len(result['runs'])} runs were disturbed by foreign load.\n\n"
            + table(("", "in parts, s", "all of it, s", "skopeo, s", "in parts / all of it", "in parts / skopeo"), rows)
            + ("\n" + promised(targets(result)) if targets(result) else ""))
