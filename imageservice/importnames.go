package imageservice

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/archive"
)

// annotationManifest names, in an archive that Export wrote, the manifest that the image was pulled by. The archive has it as
// a blob, but not the compressed layers of which it speaks.
const annotationManifest = "io.criserver.image.manifest"

// importNames are the names that an image of an archive gets: those that were asked for, else what the archive says.
// claimed are repository digests that the archive gives it and that were shown to be its.
func importNames(img archive.Image, docker []string, r *resolved, asked, claimed []string) (names, repoDigests []string, err error) {
	spelled := asked
	if len(asked) == 0 {
		spelled = slices.Concat(img.Names, docker)
	}
	names, repoDigests = []string{}, []string{}
	if len(asked) == 0 {
		repoDigests = append(repoDigests, claimed...)
	}
	for _, ref := range spelled {
		if len(asked) > 0 && img.Tag != "" && !hasTag(ref) {
			ref += ":" + img.Tag
		}
		t, err := parse(ref)
		if err != nil {
			return nil, nil, err
		}
		if t.digest != "" && t.digest != r.top && t.digest != r.manifest.Digest {
			return nil, nil, invalidf("name %s: the digest of the image is %s", t, r.top)
		}
		if t.tag != "" && !slices.Contains(names, t.String()) {
			names = append(names, t.String())
		}
		if d := t.repo.Name() + "@" + r.top.String(); !img.Made && !slices.ContainsFunc(repoDigests, func(have string) bool { return strings.HasPrefix(have, t.repo.Name()+"@") }) {
			repoDigests = append(repoDigests, d)
		}
	}
	return names, repoDigests, nil
}

// hasTag says whether a reference has a tag or digest.
func hasTag(ref string) bool {
	return strings.ContainsAny(ref[strings.LastIndexByte(ref, '/')+1:], ":@")
}

// original puts the manifest that the image was pulled by into the place of the one that Export made. Both have the same
// config, which vouches for the same layers. That of an artifact vouches for nothing, so its manifest is never another one.
func (s *Service) original(ctx context.Context, src *incoming, img archive.Image, r *resolved) error {
	d := digest.Digest(img.Desc.Annotations[annotationManifest])
	if d == "" || r.artifact || !src.archive.Has(d) {
		return nil
	}
	m, err := src.ManifestByDigest(ctx, d, accepted)
	if err != nil {
		return err
	}
	doc, index, err := parseDocument(m)
	if err != nil {
		return err
	}
	if index || isArtifact(doc, cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest)) || doc.Config.Digest != r.doc.Config.Digest {
		return invalidf("manifest %s is not of the image %s", d, r.doc.Config.Digest)
	}
	if err := s.checkManifest(d, doc); err != nil {
		return err
	}
	r.top, r.manifest = d, m
	r.chain = []ocispec.Descriptor{{MediaType: cmp.Or(doc.MediaType, ocispec.MediaTypeImageManifest), Digest: d, Size: int64(len(m.Bytes))}}
	return nil
}
