package imageservice

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/store/imagedb"
)

// annotationDigests lists, in an archive that Export wrote, the repository digests of an image. The archive has the documents that
// show that they are its: its manifest, or indexes that lead there.
const annotationDigests = "io.criserver.image.digests"

const (
	maxIndexes = 16   // that are read of an archive to find out where digests lead
	maxClaims  = 1000 // repository digests that an archive gives one image
)

// vouch gives e those of img's repository digests for which there is a document, and the documents.
func vouch(e *archive.Export, img *imagedb.Image, repoDigests []string) {
	indexes := leading(img.Documents, img.ManifestDigest)
	var listed []string
	for _, name := range repoDigests {
		_, d, _ := strings.Cut(name, "@")
		if indexes[digest.Digest(d)] != nil || d == img.ManifestDigest.String() {
			listed = append(listed, name)
		}
	}
	if len(listed) == 0 {
		return
	}
	if e.Desc.Annotations == nil {
		e.Desc.Annotations = map[string]string{}
	}
	e.Desc.Annotations[annotationDigests] = strings.Join(listed, ",")
	for _, data := range img.Documents {
		if indexes[digest.FromBytes(data)] != nil {
			e.More = append(e.More, data)
		}
	}
	slices.SortFunc(e.More, func(a, b []byte) int { return cmp.Compare(digest.FromBytes(a), digest.FromBytes(b)) })
}

// leading are those of documents that are indexes and lead to a manifest, by their digests.
func leading(documents [][]byte, manifest digest.Digest) map[digest.Digest][]byte {
	found := map[digest.Digest][]byte{}
	for range maxIndexDepth { // each round finds those one level further up
		for _, data := range documents {
			doc, index, err := parseDocument(remote.Manifest{Digest: digest.FromBytes(data), Bytes: data})
			if err == nil && index && slices.ContainsFunc(doc.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == manifest || found[d.Digest] != nil }) {
				found[digest.FromBytes(data)] = data
			}
		}
	}
	return found
}

// claims are the repository digests that an archive of ours gives an image, each shown to be its. The indexes on the way are part of
// its chain then.
func (s *Service) claims(ctx context.Context, src *incoming, img archive.Image, r *resolved) (repoDigests []string, err error) {
	text := img.Desc.Annotations[annotationDigests]
	if text == "" {
		return nil, nil
	}
	stranger := func(name string) error {
		return invalidf("%s: %s is not a digest of the image with manifest %s", annotationDigests, name, r.manifest.Digest)
	}
	indexes := map[digest.Digest][]byte{}
	for name := range strings.SplitSeq(text, ",") {
		if len(repoDigests) == maxClaims {
			return nil, invalidf("%s: more than %d", annotationDigests, maxClaims)
		}
		t, err := parse(name)
		if err != nil {
			return nil, err
		}
		if t.digest == "" {
			return nil, invalidf("%s: %s is no repository digest", annotationDigests, t)
		}
		if t.digest != r.manifest.Digest {
			if err := src.readIndexes(ctx, t.digest, indexes, 0); err != nil {
				return nil, err
			}
			if indexes[t.digest] == nil {
				return nil, stranger(t.String())
			}
		}
		repoDigests = append(repoDigests, t.String())
	}
	var documents [][]byte
	for _, data := range indexes {
		documents = append(documents, data)
	}
	found := leading(documents, r.manifest.Digest)
	for _, name := range repoDigests {
		if _, d, _ := strings.Cut(name, "@"); d != r.manifest.Digest.String() && found[digest.Digest(d)] == nil {
			return nil, stranger(name)
		}
	}
	claimed := func(d digest.Digest) bool {
		return slices.ContainsFunc(repoDigests, func(name string) bool { return strings.HasSuffix(name, "@"+d.String()) })
	}
	order := slices.Sorted(maps.Keys(found)) // those that were asked for before those that they lead to
	slices.SortStableFunc(order, func(a, b digest.Digest) int {
		if claimed(a) == claimed(b) {
			return 0
		} else if claimed(a) {
			return -1
		}
		return 1
	})
	var chain []ocispec.Descriptor
	for _, d := range order {
		r.kept = append(r.kept, found[d])
		chain = append(chain, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d, Size: int64(len(found[d]))})
	}
	r.chain = append(chain, r.chain...)
	return repoDigests, nil
}

// readIndexes adds an index, and those that it has, as far as the archive has them. One that is no index ends it, so that no more is
// read than is kept.
func (s *incoming) readIndexes(ctx context.Context, d digest.Digest, all map[digest.Digest][]byte, depth int) error {
	if all[d] != nil || !s.archive.Has(d) || depth == maxIndexDepth || len(all) == maxIndexes {
		return nil
	}
	m, err := s.ManifestByDigest(ctx, d, accepted)
	if err != nil {
		return err
	}
	doc, index, err := parseDocument(m)
	if err != nil {
		return err
	}
	if !index {
		return invalidf("manifest %s is no index", d)
	}
	all[d] = m.Bytes
	for _, e := range doc.Manifests {
		if slices.Contains(indexTypes, e.MediaType) {
			if err := s.readIndexes(ctx, e.Digest, all, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
