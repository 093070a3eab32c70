package critest

import (
	"archive/tar"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// An image of two registries is one, and goes by any of its names; a tag that moves leaves an image with its digest.
func TestImageNames(t *testing.T) {
	other := registry.Start(t, registry.Options{})
	d := use(t)
	img := small(t, "names", "gzip")
	digest := "@" + img.Desc.Digest.String()
	suite.registry.PushImage(t, "names", "v1", img)
	other.PushImage(t, "names", "v2", img)
	first, second := suite.registry.Addr+"/names", other.Addr+"/names"
	id := pull(t, d, first+":v1")
	if again := pull(t, d, second+":v2"); again != id {
		t.Errorf("one image is %s and %s", id, again)
	}
	byDigest := pull(t, d, first+":ignored"+digest) // the digest counts
	s := imageStatus(t, d, second+":v2")
	tags := []string{first + ":v1", second + ":v2"}
	slices.Sort(tags)
	if byDigest != id || !slices.Equal(s.GetRepoTags(), tags) || len(s.GetRepoDigests()) != 2 {
		t.Errorf("status %v", s)
	}
	moved := small(t, "moved name", "gzip")
	other.PushImage(t, "names", "v2", moved)
	pull(t, d, second+":v2")
	if s := imageStatus(t, d, id); !slices.Equal(s.GetRepoTags(), []string{first + ":v1"}) || !slices.Contains(s.GetRepoDigests(), second+digest) {
		t.Errorf("the image that lost a name: %v", s)
	}
	p := runPod(t, d)
	if _, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Image.Image = second + digest })); err != nil {
		t.Errorf("a container of %s: %v", second+digest, err)
	}
	removeImage(t, d, second+digest)
	if s := imageStatus(t, d, first+":v1"); s != nil {
		t.Errorf("still there by another name: %v", s)
	}
	if s := imageStatus(t, d, second+":v2"); s.GetId() != moved.ID.String() {
		t.Errorf("the image that has the name now: %v", s)
	}
}

func TestImageReferencesRefused(t *testing.T) {
	d := use(t)
	for ref, texts := range map[string][]string{
		"UPPER":                          {"UPPER", "lowercase"},
		"host/a:":                        {"host/a:", "invalid reference"},
		"host/a@sha256:short":            {"sha256:short"},
		"http://host/a":                  {"http://host/a"},
		strings.Repeat("0", 64):          {"invalid image reference"},
		suite.registry.Addr + "/a b:tag": {"image.image", "white space"},
	} {
		refused(t, tryPull(t, d, ref, nil), codes.InvalidArgument, texts...)
	}
	refused(t, tryPull(t, d, suite.registry.Addr+"/no/such:image", nil), codes.NotFound, suite.registry.Addr+"/no/such:image")
}

// artifact is pushed and pulled for the length of the test.
func artifact(t *testing.T, d *daemon, repo string) (ref, id string) {
	t.Helper()
	archive := registry.Tar(t, file("data/set", "from an archive", 0o640), symlink("data/link", "set"))
	img := registry.Artifact(t, "application/vnd.critest.model", "", registry.Named("model.bin", strings.Repeat("weights ", 1000)), registry.Named("docs/readme", "read me"),
		registry.Part{MediaType: "application/vnd.critest.data.tar+gzip", Data: registry.Compress(t, "gzip", archive)})
	suite.registry.PushImage(t, repo, "v1", img)
	ref = suite.registry.Addr + "/" + repo + ":v1"
	if id = pull(t, d, ref); id != img.Desc.Digest.String() {
		t.Errorf("id %s instead of the manifest's, %s", id, img.Desc.Digest)
	}
	return ref, id
}

func TestArtifactVolume(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		ref, id := artifact(t, d, "artifact")
		s := imageStatus(t, d, ref)
		if s.GetId() != id || s.GetSize() < 8000 || !slices.Equal(s.GetRepoTags(), []string{ref}) || s.GetSpec().GetImage() != id || s.GetUid() != nil || s.GetUsername() != "" {
			t.Errorf("status %v", s)
		}
		if !slices.Contains(listImages(t, d), id) {
			t.Error("it is not listed")
		}
		verbose, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: id}, Verbose: true})
		if err != nil || !strings.Contains(verbose.GetInfo()["info"], "application/vnd.critest.model") {
			t.Errorf("verbose status %v, %v", verbose, err)
		}
		mapping, inUserNS := userNamespace(7 << 20)
		plain, userns := runPod(t, d), runPod(t, d, inUserNS)
		mapped := func(m *cri.Mount) { m.UidMappings, m.GidMappings = mapping, mapping }
		for _, row := range []struct {
			name, script, want string
			p                  *pod
			mount              *cri.Mount
		}{
			{"whole", "cd /vol; wc -c <model.bin; cat docs/readme data/link; stat -c '%a %u' model.bin data/set; touch x 2>&1", "8000\nread mefrom an archive644 0\n640 0\ntouch: x: Read-only file system\n", plain, imageVolume(ref)},
			{"by id", "cat /vol/docs/readme", "read me", plain, imageVolume(id)},
			{"sub path", "cat /vol/readme", "read me", plain, imageVolume(ref, subPath("docs"))},
			{"one file", "cat /vol", "read me", plain, imageVolume(ref, subPath("docs/readme"))},
			{"user namespace", "stat -c %u /vol/model.bin; cat /vol/data/set", "0\nfrom an archive", userns, imageVolume(ref, mapped)},
		} {
			t.Run(row.name, func(t *testing.T) {
				c := row.p.start(t, row.script, mounts(row.mount))
				c.wait(t)
				c.wrote(t, row.want)
				if got := c.status(t).GetMounts(); len(got) != 1 || got[0].GetImage().GetImageRef() != id {
					t.Errorf("status has the mounts %v", got)
				}
			})
		}
		c := plain.start(t, idle, mounts(imageVolume(ref)))
		removeImage(t, d, ref) // what the kubelet does for space; a container keeps what it has
		if s := imageStatus(t, d, id); s != nil {
			t.Errorf("after its removal: %v", s)
		}
		if got := c.exec(t, "cat /vol/docs/readme"); got != "read me" {
			t.Errorf("the volume has %q", got)
		}
	})
}

// No container is made of an artifact, and an artifact that means two things is refused.
func TestArtifactRefused(t *testing.T) {
	d := use(t)
	ref, id := artifact(t, d, "norun")
	p := runPod(t, d)
	for _, image := range []string{ref, id} {
		_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Image.Image = image }))
		refused(t, err, codes.InvalidArgument, "config.image.image", image, "is an artifact")
	}
	for name, part := range map[string]registry.Part{
		"../escape": registry.Named("../escape", "x"),
		".wh.gone":  registry.Named(".wh.gone", "x"),
		"nothing":   {MediaType: "application/octet-stream", Data: []byte("x")},
		"../f": {MediaType: ocispec.MediaTypeImageLayer, Data: registry.Tar(t,
			registry.File{Header: tar.Header{Name: "../f"}, Body: "x"})},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, d)
			suite.registry.PushImage(t, "bad-artifact", "v1", registry.Artifact(t, "application/vnd.critest.bad", "", part))
			err := tryPull(t, d, suite.registry.Addr+"/bad-artifact:v1", nil)
			refused(t, err, codes.Unknown, suite.registry.Addr+"/bad-artifact:v1", name)
		})
	}
}

// Attestations that builders put beside an image are no images.
func TestImageWithAttestation(t *testing.T) {
	d := use(t)
	img := small(t, "attested", "gzip")
	attestation := registry.Artifact(t, "", ocispec.MediaTypeImageConfig, registry.Part{MediaType: "application/vnd.in-toto+json", Data: []byte("{}")})
	attestation.Desc.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Desc.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": img.Desc.Digest.String()}
	suite.registry.PushIndex(t, "attested", "v1", false, attestation, img)
	if id := pull(t, d, suite.registry.Addr+"/attested:v1"); id != img.ID.String() {
		t.Errorf("pulled %s instead of %s", id, img.ID)
	}
	suite.registry.PushIndex(t, "attested", "only", false, attestation)
	refused(t, tryPull(t, d, suite.registry.Addr+"/attested:only", nil), codes.NotFound, "no image for this platform")
}
