// Makes blobs with a table of contents by the Go library that defined eStargz: make TAR OUT CHUNK (estargz|zstdchunked).
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

type both struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	tar, err := os.Open(os.Args[1])
	must(err)
	info, err := tar.Stat()
	must(err)
	chunk, err := strconv.Atoi(os.Args[3])
	must(err)
	told := map[string]string{}
	options := []estargz.Option{estargz.WithChunkSize(chunk), estargz.WithPrioritizedFiles([]string{"d/b"})}
	if os.Args[4] == "zstdchunked" {
		options = append(options, estargz.WithCompression(&both{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: told}, &zstdchunked.Decompressor{},
		}))
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, info.Size()), options...)
	must(err)
	out, err := os.Create(os.Args[2])
	must(err)
	_, err = io.Copy(out, blob)
	must(err)
	must(out.Close())
	must(blob.Close())
	told[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	said, err := json.MarshalIndent(map[string]interface{}{"diff_id": blob.DiffID().String(), "annotations": told}, "", " ")
	must(err)
	fmt.Println(string(said))
}
