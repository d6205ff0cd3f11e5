"""The format in which podman, buildah, skopeo and CRI-O keep images: containers/storage, overlay driver.

``names`` (how things are called), ``documents`` (layers.json and images.json, bytes out), ``plan`` (what a view must come
to hold, from what it holds). Pure functions: nothing here reads or writes. What fills a view is the verb ``view``.

Source: go.podman.io/storage 1.43 to 1.64 (layers.go, images.go, drivers/overlay/overlay.go), as podman reads it.
"""
