package critest

import (
	"archive/tar"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/registry"
)

// imageStatus is nil for an image that is not there.
func imageStatus(t *testing.T, d *daemon, ref string) *cri.Image {
	t.Helper()
	r, err := d.images.ImageStatus(bounded(t), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("ImageStatus %s: %v", ref, err)
	}
	return r.GetImage()
}

func listImages(t *testing.T, d *daemon) []string {
	t.Helper()
	r, err := d.images.ListImages(bounded(t), &cri.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, img := range r.GetImages() {
		ids = append(ids, img.GetId())
	}
	return ids
}

// small is an image of one file, whose text makes it an image of its own.
func small(t testing.TB, text, compression string) *registry.Image {
	t.Helper()
	return registry.Build(t, registry.Spec{Layers: []registry.Layer{{Files: []registry.File{file("text", text, 0o644)}, Compression: compression}}})
}

func TestImageLife(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		img := small(t, "life", "gzip")
		suite.registry.PushImage(t, "life", "one", img)
		suite.registry.PushImage(t, "life", "latest", img)
		name := suite.registry.Addr + "/life"
		id := "sha256:" + img.ID.Encoded()
		if got := imageStatus(t, d, name+":one"); got != nil {
			t.Errorf("before it was pulled: %v", got)
		}
		for _, ref := range []string{name + ":one", name, name + "@" + img.Desc.Digest.String()} {
			r, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			if err != nil || r.GetImageRef() != id {
				t.Fatalf("PullImage %s: %q instead of %q: %v", ref, r.GetImageRef(), id, err)
			}
		}
		for _, ref := range []string{name + ":one", name, name + ":latest", name + "@" + img.Desc.Digest.String(), id, img.ID.Encoded(), img.ID.Encoded()[:12]} {
			s := imageStatus(t, d, ref)
			if s.GetId() != id || s.GetSize() == 0 || s.GetSpec().GetImage() != id {
				t.Errorf("status of %s: %v", ref, s)
			}
			if tags := slices.Sorted(slices.Values(s.GetRepoTags())); !slices.Equal(tags, []string{name + ":latest", name + ":one"}) {
				t.Errorf("tags of %s: %q", ref, tags)
			}
			if !slices.Equal(s.GetRepoDigests(), []string{name + "@" + img.Desc.Digest.String()}) {
				t.Errorf("digests of %s: %q", ref, s.GetRepoDigests())
			}
		}
		if ids := listImages(t, d); !slices.Contains(ids, id) || len(ids) != 2 {
			t.Errorf("list has %q", ids)
		}
		removeImage(t, d, name+":one") // and all other names with it
		if got := imageStatus(t, d, id); got != nil {
			t.Errorf("after it was removed: %v", got)
		}
		if ids := listImages(t, d); slices.Contains(ids, id) {
			t.Errorf("list has %q", ids)
		}
		removeImage(t, d, name+":one")
		removeImage(t, d, "no.such.host/image:tag")
	})
}

func TestImageByDigestOnly(t *testing.T) {
	d := use(t)
	img := small(t, "digest only", "gzip")
	suite.registry.PushImage(t, "digestonly", "", img)
	ref := suite.registry.Addr + "/digestonly@" + img.Desc.Digest.String()
	pull(t, d, ref)
	if s := imageStatus(t, d, ref); len(s.GetRepoTags()) != 0 || !slices.Equal(s.GetRepoDigests(), []string{ref}) {
		t.Errorf("tags %q, digests %q", s.GetRepoTags(), s.GetRepoDigests())
	}
}

func TestImageMovedTag(t *testing.T) {
	d := use(t)
	first, second := small(t, "moved first", "gzip"), small(t, "moved second", "gzip")
	ref := suite.registry.Addr + "/moved:tag"
	suite.registry.PushImage(t, "moved", "tag", first)
	one := pull(t, d, ref)
	t.Cleanup(func() { removeImage(t, d, one) })
	suite.registry.PushImage(t, "moved", "tag", second)
	two := pull(t, d, ref)
	if s := imageStatus(t, d, ref); s.GetId() != two || one == two {
		t.Errorf("the tag is %s, pulled were %s, then %s", s.GetId(), one, two)
	}
	if s := imageStatus(t, d, one); s == nil || len(s.GetRepoTags()) != 0 {
		t.Errorf("the image that lost its tag: %v", s)
	}
}

func TestImageIndex(t *testing.T) {
	for name, docker := range map[string]bool{"OCI index": false, "Docker's list": true} {
		t.Run(name, func(t *testing.T) {
			d := use(t)
			ours := registry.Build(t, registry.Spec{Docker: docker, Layers: []registry.Layer{{Files: []registry.File{file("text", "ours "+name, 0o644)}, Compression: "gzip"}}})
			foreign := registry.Build(t, registry.Spec{
				Docker: docker, Config: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}},
				Layers: []registry.Layer{{Files: []registry.File{file("text", "foreign", 0o644)}, Compression: "gzip"}},
			})
			digest := suite.registry.PushIndex(t, "index", "latest", docker, foreign, ours)
			if id := pull(t, d, suite.registry.Addr+"/index"); id != ours.ID.String() {
				t.Errorf("pulled %s instead of %s", id, ours.ID)
			}
			if id := pull(t, d, suite.registry.Addr+"/index@"+digest.String()); id != ours.ID.String() {
				t.Errorf("pulled %s instead of %s", id, ours.ID)
			}
			suite.registry.PushIndex(t, "index", "foreign", docker, foreign)
			_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: suite.registry.Addr + "/index:foreign"}})
			refused(t, err, codes.NotFound, "linux/s390x", "no image for this platform")
		})
	}
}

func TestImageCompression(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd", ""} {
		t.Run("as "+compression, func(t *testing.T) {
			eachStore(t, func(t *testing.T, d *daemon) {
				text := strings.Repeat("compress me ", 20000)
				ref := pullNew(t, d, "compression", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("text", text, 0o644)}, Compression: compression})
				p := runPod(t, d)
				c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
				if got := c.exec(t, "cat /text"); got != text {
					t.Errorf("%d bytes instead of %d", len(got), len(text))
				}
			})
		})
	}
}

// What layers can hold, as a container sees it.
func TestImageFiles(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		head := func(h tar.Header) registry.File { return registry.File{Header: h} }
		lower := registry.Layer{Compression: "gzip", Files: []registry.File{
			dir("d/", 0o755), file("d/gone", "x", 0o644), file("d/kept", "lower", 0o644), file("d/over", "lower", 0o644),
			dir("opaque/", 0o755), file("opaque/old", "x", 0o644), file("wasfile", "x", 0o644), dir("wasdir/", 0o755), file("wasdir/x", "x", 0o644),
			file("linked", "many names", 0o640), hardlink("d/link1", "linked"), hardlink("link2", "linked"),
			symlink("absolute", "/d/kept"), symlink("dangling", "/no/such"), symlink("up", "../../../d/kept"),
			file("with space", "1", 0o644), file("new\nline", "2", 0o644), file("bytes\xff\xfe", "3", 0o644), file("-rf", "4", 0o644),
			file("日本", "5", 0o644), file(strings.Repeat("n", 255), "6", 0o644), file("deep/"+strings.Repeat("d/", 60)+"file", "7", 0o644),
			head(tar.Header{Name: "owned", Uid: 1234567, Gid: 7654321, Mode: 0o4755}),
			head(tar.Header{Name: "sticky/", Mode: 0o1777}), head(tar.Header{Name: "setgid", Mode: 0o2755}),
			head(tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}),
			head(tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}),
			{Header: tar.Header{Name: "capable", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "attribute"}}, Body: "x"},
			file("./dotted", "8", 0o644), file("empty", "", 0o644), file("big", strings.Repeat("0123456789abcdef", 1<<16), 0o644),
		}}
		upper := registry.Layer{Compression: "zstd", Files: []registry.File{
			file("d/.wh.gone", "", 0o644), file("d/over", "upper", 0o600), dir("opaque/", 0o700), file("opaque/.wh..wh..opq", "", 0o644), file("opaque/new", "y", 0o644),
			dir("wasfile/", 0o755), file("wasfile/y", "y", 0o644), file("wasdir", "now a file", 0o644),
		}}
		ref := pullNew(t, d, "files", ocispec.ImageConfig{}, lower, upper, registry.Layer{Files: []registry.File{file("top", "third", 0o644)}})
		p := runPod(t, d)
		c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
		for _, row := range []struct{ name, script, want string }{
			{"whiteout", "ls d", "kept\nlink1\nover\n"},
			{"file replaced", "cat d/over; stat -c %a d/over", "upper600\n"},
			{"opaque directory", "ls opaque; stat -c %a opaque", "new\n700\n"},
			{"file to directory", "ls wasfile", "y\n"},
			{"directory to file", "cat wasdir", "now a file"},
			{"third layer", "cat top", "third"},
			{"hard links", "stat -c '%h %a' linked d/link1 link2; [ linked -ef d/link1 ] && [ linked -ef link2 ] && echo same", "3 640\n3 640\n3 640\nsame\n"},
			{"absolute symlink", "cat absolute; readlink absolute", "lower/d/kept\n"},
			{"dangling symlink", "readlink dangling; [ -e dangling ] || echo dangles", "/no/such\ndangles\n"},
			{"symlink above the root", "cat up", "lower"},
			{"odd names", `cat 'with space' "$(printf 'new\nline')" "$(printf 'bytes\377\376')" ./-rf 日本 n*nnnnnn $(find deep -name file) dotted`, "12345678"},
			{"owner and set-id bits", "stat -c '%u %g %a' owned setgid sticky", "1234567 7654321 4755\n0 0 2755\n0 0 1777\n"},
			{"pipe", "stat -c '%F %a' fifo", "fifo 600\n"},
			{"device", "stat -c '%F %t %T' null", "character special file 1 3\n"},
			{"times", "stat -c %Y d/kept empty", "1700000000\n1700000000\n"},
			{"large file", "md5sum <big; stat -c %s big empty", "14d785daab3823736c981ca82a750c98  -\n1048576\n0\n"},
			{"writable", "echo new >d/kept; cat d/kept; rm linked; cat link2; mkdir x; mv d/over x/", "new\nmany names"},
		} {
			t.Run(row.name, func(t *testing.T) {
				if got := c.exec(t, "cd /; "+row.script); got != row.want {
					t.Errorf("%q instead of %q", got, row.want)
				}
			})
		}
		again := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
		if got := again.exec(t, "cat /d/kept; ls /d"); got != "lowerkept\nlink1\nover\n" {
			t.Errorf("another container of the image sees %q", got)
		}
	})
}

// An image that is removed while containers use it is no longer listed; they go on, and their space comes back with them.
func TestImageRemovedInUse(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		ref := pullNew(t, d, "inuse", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("text", "still here", 0o644)}})
		p := runPod(t, d)
		c := p.start(t, idle, func(c *cri.ContainerConfig) { c.Image.Image = ref })
		before := c.status(t)
		removeImage(t, d, ref)
		if s := imageStatus(t, d, ref); s != nil {
			t.Errorf("after its removal: %v", s)
		}
		if got := c.exec(t, "cat /text"); got != "still here" {
			t.Errorf("the container sees %q", got)
		}
		after := c.status(t)
		if after.GetImageId() != before.GetImageId() || after.GetImageRef() != before.GetImageRef() || after.GetImage().GetImage() != ref {
			t.Errorf("status of the container was %v and is %v", before, after)
		}
		_, err := p.tryCreate(t, containerConfig(idle, func(c *cri.ContainerConfig) { c.Image.Image = ref }))
		refused(t, err, codes.NotFound, ref)
	})
}

func TestImageUsers(t *testing.T) {
	d := use(t)
	for user, want := range map[string]*cri.Image{
		"":          {},
		"1000":      {Uid: &cri.Int64Value{Value: 1000}},
		"1000:1001": {Uid: &cri.Int64Value{Value: 1000}},
		"0":         {Uid: &cri.Int64Value{Value: 0}},
		"bob":       {Username: "bob"},
		"bob:staff": {Username: "bob"},
	} {
		t.Run(user, func(t *testing.T) {
			check(t, d)
			ref := pullNew(t, d, "users", ocispec.ImageConfig{User: user})
			s := imageStatus(t, d, ref)
			if s.GetUsername() != want.GetUsername() || (s.GetUid() == nil) != (want.GetUid() == nil) || s.GetUid().GetValue() != want.GetUid().GetValue() {
				t.Errorf("uid %v, username %q", s.GetUid(), s.GetUsername())
			}
		})
	}
}

// Image volumes are writable directories of each container, filled with what the image has there.
func TestImageVolumes(t *testing.T) {
	d := use(t)
	ref := pullNew(t, d, "volumes", ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}, "/fresh": {}}},
		registry.Layer{Files: []registry.File{dir("data/", 0o750), file("data/seed", "from the image", 0o640), symlink("data/link", "seed")}})
	p := runPod(t, d)
	image := func(c *cri.ContainerConfig) { c.Image.Image = ref }
	a, b := p.start(t, idle, image), p.start(t, idle, image)
	if got := a.exec(t, "cat /data/link; stat -c %a /data /data/seed; echo a >/data/new; echo a >/fresh/new; ls /data /fresh"); got != "from the image750\n640\n/data:\nlink\nnew\nseed\n\n/fresh:\nnew\n" {
		t.Errorf("volumes have %q", got)
	}
	if got := b.exec(t, "ls /data /fresh"); got != "/data:\nlink\nseed\n\n/fresh:\n" {
		t.Errorf("volumes of another container have %q", got)
	}
	host := t.TempDir()
	write(t, filepath.Join(host, "mounted"), "x")
	over := p.start(t, idle, image, func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: host, ContainerPath: "/data"}}
	})
	if got := over.exec(t, "ls /data"); got != "mounted\n" {
		t.Errorf("a mount over a volume shows %q", got)
	}
	readonly := p.start(t, idle, image, func(c *cri.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true })
	if got := readonly.exec(t, "echo x >/data/x && echo writable"); got != "writable\n" {
		t.Errorf("volume of a read-only container: %q", got)
	}
}

func TestImagePullsInParallel(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		img := small(t, strings.Repeat("parallel", 100000), "gzip")
		suite.registry.PushImage(t, "parallel", "latest", img)
		ref := suite.registry.Addr + "/parallel:latest"
		t.Cleanup(func() { removeImage(t, d, ref) })
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				r, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
				if err != nil || r.GetImageRef() != img.ID.String() {
					t.Errorf("PullImage: %q, %v", r.GetImageRef(), err)
				}
			})
		}
		all.Wait()
		for range 10 {
			all.Go(func() {
				_, err := d.images.RemoveImage(bounded(t), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
				if err != nil {
					t.Errorf("RemoveImage: %v", err)
				}
			})
		}
		all.Wait()
	})
}

func TestImageFsInfo(t *testing.T) {
	eachStore(t, func(t *testing.T, d *daemon) {
		usage := func() *cri.FilesystemUsage {
			r, err := d.images.ImageFsInfo(bounded(t), &cri.ImageFsInfoRequest{})
			if err != nil || len(r.GetImageFilesystems()) == 0 || len(r.GetContainerFilesystems()) == 0 {
				t.Fatalf("ImageFsInfo: %v, %v", r, err)
			}
			return r.GetImageFilesystems()[0]
		}
		before := usage()
		if st, err := os.Stat(before.GetFsId().GetMountpoint()); err != nil || !st.IsDir() {
			t.Errorf("mountpoint %q: %v", before.GetFsId().GetMountpoint(), err)
		}
		if before.GetTimestamp() == 0 || before.GetUsedBytes().GetValue() == 0 || before.GetInodesUsed().GetValue() == 0 {
			t.Errorf("usage %v", before)
		}
		ref := pullNew(t, d, "usage", ocispec.ImageConfig{}, registry.Layer{Files: []registry.File{file("megabytes", strings.Repeat("m", 4<<20), 0o644)}})
		if more := usage().GetUsedBytes().GetValue() - before.GetUsedBytes().GetValue(); more < 4<<20 || more > 6<<20 {
			t.Errorf("an image of 4 MiB more uses %d bytes", more)
		}
		removeImage(t, d, ref)
		if after := usage().GetUsedBytes().GetValue(); after != before.GetUsedBytes().GetValue() {
			t.Errorf("%d bytes in use after the removal, %d before", after, before.GetUsedBytes().GetValue())
		}
	})
}

// Registries that want credentials, HTTPS by hosts.toml.
func TestImageRegistries(t *testing.T) {
	for _, row := range []struct {
		name    string
		options registry.Options
	}{
		{"basic", registry.Options{Basic: true}},
		{"token", registry.Options{Token: true}},
		{"https", registry.Options{TLS: true}},
		{"https and basic", registry.Options{TLS: true, Basic: true}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := registry.Start(t, row.options)
			d := use(t)
			img := small(t, "registry "+row.name, "gzip")
			r.PushImage(t, "private", "latest", img)
			ref := r.Addr + "/private:latest"
			if row.options.TLS {
				trust(t, d, r)
			}
			try := func(auth *cri.AuthConfig) error {
				_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
				return err
			}
			good := &cri.AuthConfig{Username: registry.User, Password: registry.Password}
			if row.options.Basic || row.options.Token {
				refused(t, try(nil), codes.Unknown, ref)
				refused(t, try(&cri.AuthConfig{Username: registry.User, Password: "wrong-secret"}), codes.Unknown, ref)
				refused(t, try(&cri.AuthConfig{Username: registry.User, Password: registry.Password, ServerAddress: "https://other.example"}), codes.Unknown, ref)
				if log := d.lastLog(); strings.Contains(log, "wrong-secret") {
					t.Error("the log has a password")
				}
			}
			if err := try(good); err != nil {
				t.Errorf("with the credentials: %v", err)
			}
			removeImage(t, d, ref)
			if row.options.Token {
				if err := try(&cri.AuthConfig{IdentityToken: registry.IdentityToken}); err != nil {
					t.Errorf("with an identity token: %v", err)
				}
				removeImage(t, d, ref)
			}
		})
	}
}

// trust gives d a hosts.toml for the registry, for the length of the test.
func trust(t *testing.T, d *daemon, r *registry.Registry) {
	t.Helper()
	dir := filepath.Join(d.certs(), r.Addr)
	if err := os.CopyFS(d.certs(), os.DirFS(r.CertsDir(t))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}

func TestImageUntrusted(t *testing.T) {
	r := registry.Start(t, registry.Options{TLS: true})
	d := use(t)
	r.PushImage(t, "x", "latest", small(t, "untrusted", "gzip"))
	r.CAFile = "" // of the hosts.toml only
	trust(t, d, r)
	_, err := d.images.PullImage(bounded(t), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: r.Addr + "/x"}})
	refused(t, err, codes.Unknown, "RegistryUnavailable", "certificate")
}

func TestImagePullDeadline(t *testing.T) {
	d := use(t)
	ctx, cancel := context.WithTimeout(context.Background(), 1)
	defer cancel()
	r, err := d.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: suite.busybox}})
	refused(t, err, codes.DeadlineExceeded)
	if r.GetImageRef() != "" {
		t.Errorf("image ref %q", r.GetImageRef())
	}
}
