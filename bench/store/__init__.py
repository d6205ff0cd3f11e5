"""What a store costs as it grows and while it is in use: ``python -m bench.store``.

Five measures, a module each: ``commit`` (time, bytes and flushes against the number of layers), ``readers`` (latency
and lock waits beside writers), ``recovery`` (the next open after kills), ``neighbour`` (a stranger's fdatasync on the
same disk) and ``startup`` (the command line). ``worker`` is what runs in processes of its own, ``ground`` the file
systems, ``stores`` the filled stores, ``tracing`` the counts, ``figures`` the statistics, ``page`` the document.
Nothing here is imported by the product.
"""
