"""An image puller: python puller.py STORE SOURCE… [--keep N]

Pulls images (oci:DIR, docker://HOST/REPO:TAG …) into a store, says how it goes, and keeps the N newest that no name has.
It may be killed at any moment: what it said it has is there, and the next run goes on where it was.
"""

import argparse
import sys

import layerstore
from layerstore import errors


class Lines(layerstore.Quiet):
    """A line for every layer that got anywhere."""

    def layer(self, layer: str, *, state: str, size: int) -> None:
        if state in ("present", "staged"):
            print(f"  {layer[7:19]} {state} ({size} bytes)")


def pull(store: layerstore.Store, source: str, attempts: int) -> layerstore.Image:
    """One image. What came before a connection broke is kept, and is not fetched again by the next attempt."""
    for attempt in range(1, attempts + 1):
        try:
            return store.pull(source, progress=Lines(), options=layerstore.PullOptions(replace_names=True))
        except errors.RegistryUnavailableError as error:
            if attempt == attempts:
                raise
            print(f"  {error}; once more", file=sys.stderr)
    raise AssertionError("not reached")


def tidy(store: layerstore.Store, keep: int) -> None:
    """Let images go that have lost their names to newer ones; their layers, too, unless something still needs them."""
    nameless = sorted((image for image in store.images() if not image.names), key=lambda image: image.created_ns)
    for image in nameless[: len(nameless) - keep]:
        deleted = store.delete_image(image.id)
        print(f"deleted {image.id[:12]} and {len(deleted.layers)} layers")
    store.collect_garbage()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--keep", type=int, default=0)
    parser.add_argument("--attempts", type=int, default=3)
    options = parser.parse_args()
    with layerstore.open(options.store) as store:
        for action in store.recovery.actions:
            print(f"recovered: {action.do.value} {action.why}")
        try:
            for source in options.sources:
                print(source)
                image = pull(store, source, options.attempts)
                print(f"{'new' if image.created else 'had'} {image.id[:12]} {' '.join(image.names)}")
        except errors.LayerstoreError as error:      # by whose fault it is: errors.InputError, HostError …
            print(f"{error}\n  hint: {error.hint}", file=sys.stderr)
            return 1
        tidy(store, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
