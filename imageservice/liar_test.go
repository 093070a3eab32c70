package imageservice

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/test/registry"
)

// liar is a registry with one image, which answers as a test wants.
type liar struct {
	*httptest.Server
	img *registry.Image

	// manifest and blob answer in place of the truth; hit counts the requests of the same path from 1. blob is asked for
	// the image's layers only.
	manifest func(w http.ResponseWriter, r *http.Request, hit int)
	blob     func(w http.ResponseWriter, r *http.Request, hit int)

	mu     sync.Mutex
	hits   map[string]int
	ranges []string
}

func newLiar(t testing.TB, img *registry.Image) *liar {
	l := &liar{img: img, hits: map[string]int{}}
	l.Server = httptest.NewUnstartedServer(l)
	l.Server.Config.ErrorLog = nil
	l.Start()
	t.Cleanup(l.Close)
	return l
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.hits[r.URL.Path]++
	hit := l.hits[r.URL.Path]
	if ask := r.Header.Get("Range"); ask != "" {
		l.ranges = append(l.ranges, ask)
	}
	l.mu.Unlock()
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if strings.Contains(r.URL.Path, "/manifests/") {
		if l.manifest != nil {
			l.manifest(w, r, hit)
			return
		}
		l.serveManifest(w, l.img.Manifest, l.img.Desc.MediaType)
		return
	}
	blob, ok := l.img.Blobs[digest.Digest(name)]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if l.blob != nil && digest.Digest(name) != l.img.ID {
		l.blob(w, r, hit)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
}

func (l *liar) serveManifest(w http.ResponseWriter, data []byte, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	_, _ = w.Write(data) // the client may be gone
}

// layer is the content of the image's only layer.
func (l *liar) layer() []byte { return l.img.Blobs[l.img.Layers[0].Digest] }

// serve sends blob, from where the request wants it, as far as byte end.
func serve(w http.ResponseWriter, r *http.Request, blob []byte, end int) {
	var from int
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if end > from {
		_, _ = w.Write(blob[from:end]) // the client may be gone
	}
	w.(http.Flusher).Flush()
}

// reset breaks the connection.
func reset() { panic(http.ErrAbortHandler) }

// incompressible is an image of one gzip layer of about a megabyte.
func incompressible(t testing.TB) *registry.Image {
	return registry.Build(t, registry.Spec{Layers: []registry.Layer{{
		Compression: "gzip", Files: []registry.File{{Header: tar.Header{Name: "noise"}, Body: noise(7)}},
	}}})
}

// noise is a megabyte, always the same for a seed.
func noise(seed uint64) string {
	data := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(seed, 8))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return string(data)
}

// impatient makes tests of slow registries short.
func impatient(c *Config) {
	c.Registry = remote.Config{
		Attempts: 3, Backoff: time.Millisecond, MaxBackoff: 50 * time.Millisecond, Window: 2 * time.Second, MinThroughput: 50 << 10,
	}
}

func status(code int, header ...string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// editManifest changes fields of the manifest.
func editManifest(t testing.TB, l *liar, edit func(m map[string]any)) {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(l.img.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	l.img.SetManifest(data, l.img.Desc.MediaType)
}

// editConfig changes the config and lets the manifest name it.
func editConfig(t testing.TB, l *liar, edit func(c *ocispec.Image)) {
	t.Helper()
	var c ocispec.Image
	if err := json.Unmarshal(l.img.Config, &c); err != nil {
		t.Fatal(err)
	}
	edit(&c)
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	setConfig(t, l, data)
}

func setConfig(t testing.TB, l *liar, data []byte) {
	t.Helper()
	l.img.ID = digest.FromBytes(data)
	l.img.Blobs[l.img.ID] = data
	editManifest(t, l, func(m map[string]any) {
		config := m["config"].(map[string]any)
		config["digest"], config["size"] = l.img.ID, len(data)
	})
}

// setLayer replaces the bytes of the only layer, not what the config says of it.
func setLayer(t testing.TB, l *liar, data []byte) {
	t.Helper()
	setLayerAt(t, l, 0, data)
}

func setLayerAt(t testing.TB, l *liar, i int, data []byte) {
	t.Helper()
	d := digest.FromBytes(data)
	l.img.Blobs[d] = data
	l.img.Layers[i].Digest = d
	editManifest(t, l, func(m map[string]any) {
		layer := m["layers"].([]any)[i].(map[string]any)
		layer["digest"], layer["size"] = d, len(data)
	})
}

func layerField(key string, value any) func(*testing.T, *liar) {
	return func(t *testing.T, l *liar) {
		editManifest(t, l, func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)[key] = value })
	}
}

func configField(key string, value any) func(*testing.T, *liar) {
	return func(t *testing.T, l *liar) {
		editManifest(t, l, func(m map[string]any) { m["config"].(map[string]any)[key] = value })
	}
}

func manifestText(text string) func(*testing.T, *liar) {
	return func(_ *testing.T, l *liar) { l.img.SetManifest([]byte(text), l.img.Desc.MediaType) }
}

func TestRegistriesThatLieAreToldAndLeaveNothing(t *testing.T) {
	other := digest.FromString("other").String()
	for name, c := range map[string]struct {
		spoil func(t *testing.T, l *liar)
		kind  error
		says  []string
	}{
		"layer of other bytes": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				bad := bytes.Clone(l.layer())
				bad[len(bad)/2] ^= 1
				serve(w, r, bad, len(bad))
			}
		}, ErrInvalidImage, []string{"stage layers", "layer 1 of 1", "verify: digest is sha256:"}},
		"layer of noise": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				serve(w, r, bytes.Repeat([]byte("no"), len(l.layer())/2+1)[:len(l.layer())], len(l.layer()))
			}
		}, ErrInvalidImage, []string{"verify: digest is sha256:"}},
		"layer of another diff id": {func(t *testing.T, l *liar) {
			editConfig(t, l, func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = digest.Digest(other) })
		}, ErrInvalidImage, []string{"uncompressed digest is sha256:", other}},
		"layer too long": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				long := append(bytes.Clone(l.layer()), 0)
				serve(w, r, long, len(long))
			}
		}, ErrInvalidImage, []string{"stage layers", "length is"}},
		"layer too long, length unknown": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.(http.Flusher).Flush()
				_, _ = w.Write(l.layer())
				_, _ = w.Write([]byte{0})
			}
		}, ErrInvalidImage, []string{"more than the", "announced"}},
		"layer too short, length unknown": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.(http.Flusher).Flush()
				_, _ = w.Write(l.layer()[:100])
			}
		}, ErrRegistryUnavailable, []string{"ended after 100 of", "attempt 3"}},
		"layer with a content encoding": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				w.Header().Set("Content-Encoding", "gzip")
				serve(w, r, l.layer(), len(l.layer()))
			}
		}, ErrInvalidImage, []string{"content encoding"}},
		"reset at once, always": {func(_ *testing.T, l *liar) {
			l.blob = func(http.ResponseWriter, *http.Request, int) { reset() }
		}, ErrRegistryUnavailable, []string{"attempt 1:", "attempt 2:", "attempt 3:", "EOF", "/blobs/sha256:"}},
		"range that was not asked for": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, hit int) {
				if hit == 1 {
					serve(w, r, l.layer(), 1000)
					reset()
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(l.layer())-1, len(l.layer())))
				w.WriteHeader(http.StatusPartialContent)
			}
		}, ErrInvalidImage, []string{"got range", "bytes 0-"}},
		"trickle": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) {
				serve(w, r, l.layer(), 0)
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for r.Context().Err() == nil {
					<-tick.C
					_, _ = w.Write([]byte{0x1f})
					w.(http.Flusher).Flush()
				}
			}
		}, ErrRegistryUnavailable, []string{"stage layers", "too slow: ", "attempt 3:"}},
		"silence after the headers of the manifest": {func(_ *testing.T, l *liar) {
			l.manifest = func(w http.ResponseWriter, r *http.Request, _ int) {
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		}, ErrRegistryUnavailable, []string{"stage resolve", "stalled", "manifest latest"}},
		"silence instead of a layer": {func(_ *testing.T, l *liar) {
			l.blob = func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }
		}, ErrRegistryUnavailable, []string{"stage layers", "stalled: no answer in 2s", "attempt 3:"}},

		"401 without a challenge":      {func(_ *testing.T, l *liar) { l.manifest = status(401) }, ErrUnauthorized, []string{"stage resolve", "401 Unauthorized"}},
		"401 with a strange challenge": {func(_ *testing.T, l *liar) { l.manifest = status(401, "WWW-Authenticate", "Negotiate") }, ErrUnauthorized, []string{"401"}},
		"401 with a realm that is no URL": {func(_ *testing.T, l *liar) {
			l.manifest = status(401, "WWW-Authenticate", `Bearer realm="http://[::1"`)
		}, ErrUnauthorized, []string{"token server at"}},
		"403":       {func(_ *testing.T, l *liar) { l.manifest = status(403) }, ErrUnauthorized, []string{"403 Forbidden"}},
		"404":       {func(_ *testing.T, l *liar) { l.manifest = status(404) }, ErrNotFound, []string{"stage resolve", "404 Not Found", "/v2/app/manifests/latest"}},
		"404 layer": {func(_ *testing.T, l *liar) { l.blob = status(404) }, ErrNotFound, []string{"stage layers", "404 Not Found"}},
		"418":       {func(_ *testing.T, l *liar) { l.manifest = status(418) }, ErrInvalidImage, []string{"418"}},
		"429 for an hour": {func(_ *testing.T, l *liar) {
			l.manifest = status(429, "Retry-After", "3600")
		}, ErrRegistryUnavailable, []string{"429 Too Many Requests"}},
		"500":          {func(_ *testing.T, l *liar) { l.manifest = status(500) }, ErrRegistryUnavailable, []string{"attempt 3:", "500 Internal"}},
		"503 of layer": {func(_ *testing.T, l *liar) { l.blob = status(503) }, ErrRegistryUnavailable, []string{"stage layers", "attempt 3:", "503"}},
		"redirect in a circle": {func(_ *testing.T, l *liar) {
			l.blob = func(w http.ResponseWriter, r *http.Request, _ int) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
		}, ErrInvalidImage, []string{"redirects"}},

		"manifest of another digest header": {func(_ *testing.T, l *liar) {
			l.manifest = func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.Header().Set("Docker-Content-Digest", other)
				l.serveManifest(w, l.img.Manifest, l.img.Desc.MediaType)
			}
		}, ErrInvalidImage, []string{"stage resolve", "digest of the manifest is", other}},
		"huge manifest": {func(_ *testing.T, l *liar) {
			l.img.SetManifest(bytes.Repeat([]byte(" "), remote.MaxManifest+1), l.img.Desc.MediaType)
		}, ErrInvalidImage, []string{"more than 4194304 bytes"}},
		"index that points at itself": {func(_ *testing.T, l *liar) {
			l.img.SetManifest(fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`, ocispec.MediaTypeImageIndex, other), ocispec.MediaTypeImageIndex)
		}, ErrInvalidImage, []string{"digest of the manifest is", other}},
		"indexes without end": {func(t *testing.T, l *liar) {
			all := map[string][]byte{}
			top := l.img.Desc
			for range maxIndexDepth + 2 {
				data, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{top}})
				if err != nil {
					t.Fatal(err)
				}
				top = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(data), Size: int64(len(data))}
				all[top.Digest.String()], all["latest"] = data, data
			}
			l.manifest = func(w http.ResponseWriter, r *http.Request, _ int) {
				l.serveManifest(w, all[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]], ocispec.MediaTypeImageIndex)
			}
		}, ErrInvalidImage, []string{"more than 3 indexes"}},
		"index with a wrong size": {func(t *testing.T, l *liar) {
			m, mediaType := l.img.Manifest, l.img.Desc.MediaType
			desc := l.img.Desc
			desc.Size++
			data, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}})
			if err != nil {
				t.Fatal(err)
			}
			l.manifest = func(w http.ResponseWriter, r *http.Request, _ int) {
				if strings.HasSuffix(r.URL.Path, "/latest") {
					l.serveManifest(w, data, ocispec.MediaTypeImageIndex)
				} else {
					l.serveManifest(w, m, mediaType)
				}
			}
		}, ErrInvalidImage, []string{"the index says"}},
		"index without manifests": {func(_ *testing.T, l *liar) {
			l.img.SetManifest([]byte(`{"schemaVersion":2,"manifests":[]}`), ocispec.MediaTypeImageIndex)
		}, ErrNotFound, []string{"no image for this platform"}},
		"index with a bad digest": {func(_ *testing.T, l *liar) {
			l.img.SetManifest(fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":"sha256:x"}]}`, ocispec.MediaTypeImageManifest), ocispec.MediaTypeImageIndex)
		}, ErrInvalidImage, []string{"entry 0"}},
		"manifest and index at once": {manifestText(`{"schemaVersion":2,"manifests":[],"layers":[]}`), ErrInvalidImage, []string{"both a manifest and an index"}},
		"manifest that calls itself an index": {func(t *testing.T, l *liar) {
			editManifest(t, l, func(m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex })
		}, ErrInvalidImage, []string{"calls itself"}},
		"index type without entries": {func(_ *testing.T, l *liar) {
			l.img.SetManifest([]byte(`{"schemaVersion":2}`), ocispec.MediaTypeImageIndex)
		}, ErrInvalidImage, []string{"its content is not that of"}},
		"layers twice":                    {manifestText(`{"schemaVersion":2,"layers":[],"config":{},"layers":[{}]}`), ErrInvalidImage, []string{`field "layers" is there twice`}},
		"layers twice, spelt differently": {manifestText(`{"schemaVersion":2,"layers":[],"Layers":[]}`), ErrInvalidImage, []string{`field "Layers" is there twice`}},
		"digest of config twice":          {manifestText(`{"schemaVersion":2,"layers":[],"config":{"digest":"a","digest":"b"}}`), ErrInvalidImage, []string{`field "digest" is there twice`}},
		"diff ids twice": {func(t *testing.T, l *liar) {
			setConfig(t, l, append(bytes.TrimSuffix(bytes.TrimSpace(l.img.Config), []byte("}")), `,"rootfs":{"type":"layers","diff_ids":[]}}`...))
		}, ErrInvalidImage, []string{`field "rootfs" is there twice`}},
		"fields of wrong types": {manifestText(`{"schemaVersion":"2","layers":{}}`), ErrInvalidImage, []string{"stage resolve", "manifest sha256:"}},
		"very deep JSON":        {manifestText(strings.Repeat("[", 100_000)), ErrInvalidImage, []string{"stage resolve"}},
		"too many entries":      {manifestText(`{"schemaVersion":2,"manifests":[` + strings.Repeat("{},", maxDescriptors) + "{}]}"), ErrInvalidImage, []string{"more than 1000 descriptors"}},
		"not JSON":              {manifestText("<html>"), ErrInvalidImage, []string{"stage resolve", "invalid character"}},
		"empty manifest":        {manifestText("{}"), ErrInvalidImage, []string{"its content is not that of"}},
		"schema 1":              {manifestText(`{"schemaVersion":1,"fsLayers":[]}`), ErrInvalidImage, []string{"schema 1"}},
		"HTML page": {func(_ *testing.T, l *liar) { l.img.SetManifest([]byte(`{"a":1}`), "text/html") },
			ErrInvalidImage, []string{`media type "text/html" is not a container image's`}},
		"no config":              {manifestText(`{"schemaVersion":2,"layers":[]}`), ErrInvalidImage, []string{"artifact sha256:", "has nothing that a volume can show"}},
		"config of a wrong size": {configField("size", 5), ErrInvalidImage, []string{"length is"}},
		"config of a huge size":  {configField("size", 1<<40), ErrInvalidImage, []string{"is not between 0 and"}},
		"config without digest":  {configField("digest", ""), ErrInvalidImage, []string{"invalid checksum digest"}},
		"config of other bytes": {func(_ *testing.T, l *liar) {
			l.img.Blobs[l.img.ID] = bytes.Repeat([]byte("x"), len(l.img.Config))
		}, ErrInvalidImage, []string{"stage config", "digest is"}},
		"config not JSON":       {func(t *testing.T, l *liar) { setConfig(t, l, []byte("<html>")) }, ErrInvalidImage, []string{"config sha256:", "invalid character"}},
		"config without rootfs": {func(t *testing.T, l *liar) { setConfig(t, l, []byte("{}")) }, ErrInvalidImage, []string{"rootfs.type"}},
		"config with too few diff ids": {func(t *testing.T, l *liar) {
			editConfig(t, l, func(c *ocispec.Image) { c.RootFS.DiffIDs = nil })
		}, ErrInvalidImage, []string{"0 rootfs.diff_ids, the manifest has 1 layers"}},
		"config with a bad diff id": {func(t *testing.T, l *liar) {
			editConfig(t, l, func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = "sha256:../../etc" })
		}, ErrInvalidImage, []string{"rootfs.diff_ids[0]"}},
		"config for another machine": {func(t *testing.T, l *liar) {
			editConfig(t, l, func(c *ocispec.Image) { c.Architecture = "s390x" })
		}, ErrNotFound, []string{"linux/s390x"}},
		"layer of no type":       {layerField("mediaType", "text/plain"), ErrInvalidImage, []string{"layer 0", `"text/plain" is not a layer's`}},
		"layer of another type":  {layerField("mediaType", ocispec.MediaTypeImageLayerZstd), ErrInvalidImage, []string{"decompress: media type is", "1f 8b"}},
		"layer called plain":     {layerField("mediaType", ocispec.MediaTypeImageLayer), ErrInvalidImage, []string{"decompress: media type is"}},
		"layer of negative size": {layerField("size", -1), ErrInvalidImage, []string{"size is -1"}},
		"layer of no size":       {layerField("size", 0), ErrInvalidImage, []string{"size is 0"}},
		"layer of a bad digest":  {layerField("digest", "sha256:../../../etc/passwd"), ErrInvalidImage, []string{"layer 0: digest"}},
		"too many layers": {func(t *testing.T, l *liar) {
			editManifest(t, l, func(m map[string]any) {
				layers := m["layers"].([]any)
				for len(layers) <= 500 {
					layers = append(layers, layers[0])
				}
				m["layers"] = layers
			})
		}, ErrInvalidImage, []string{"501 layers"}},
		"truncated gzip": {func(t *testing.T, l *liar) { setLayer(t, l, l.layer()[:len(l.layer())-9]) },
			ErrInvalidImage, []string{"stage layers", "decompress: unexpected EOF"}},
		"gzip with garbage behind": {func(t *testing.T, l *liar) { setLayer(t, l, append(bytes.Clone(l.layer()), "garbage behind it"...)) },
			ErrInvalidImage, []string{"decompress: gzip: invalid header"}},
		"gzip bomb": {func(t *testing.T, l *liar) { setLayer(t, l, registry.Compress(t, "gzip", make([]byte, 64<<20))) },
			ErrInvalidImage, []string{"decompress: more than"}},
		"zstd bomb": {func(t *testing.T, l *liar) {
			setLayer(t, l, registry.Compress(t, "zstd", make([]byte, 64<<20)))
			layerField("mediaType", ocispec.MediaTypeImageLayerZstd)(t, l)
		}, ErrInvalidImage, []string{"decompress: more than"}},
		"bomb that claims to be large": {func(t *testing.T, l *liar) {
			setLayer(t, l, registry.Compress(t, "gzip", make([]byte, 64<<20)))
			layerField("size", 1<<40)(t, l)
			l.blob = func(w http.ResponseWriter, _ *http.Request, _ int) {
				w.(http.Flusher).Flush()
				_, _ = w.Write(l.layer()) // the client may be gone
			}
		}, ErrInvalidImage, []string{"decompress: more than"}},
		"not an archive": {func(t *testing.T, l *liar) {
			setLayer(t, l, registry.Compress(t, "gzip", bytes.Repeat([]byte("not a tar "), 1000)))
		}, ErrInvalidImage, []string{"stage layers", "invalid layer"}},
		"archive that ends in a file": {func(t *testing.T, l *liar) {
			whole := registry.Tar(t, registry.File{Header: tar.Header{Name: "x"}, Body: strings.Repeat("x", 5000)})
			setLayer(t, l, registry.Compress(t, "gzip", whole[:1000]))
		}, ErrInvalidImage, []string{"stage layers", `"x"`, "unexpected EOF"}},
		"archive that leaves the root": {func(t *testing.T, l *liar) {
			bad := registry.Tar(t, registry.File{Header: tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}})
			setLayer(t, l, registry.Compress(t, "gzip", bad))
		}, ErrInvalidImage, []string{"invalid layer"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLiar(t, incompressible(t))
			c.spoil(t, l)
			n := newNode(t, impatient, func(c *Config) { c.Limits = Limits{Base: 16 << 20, Expansion: 2} })
			_, err := n.Pull(t.Context(), PullRequest{Ref: l.Listener.Addr().String() + "/app"})
			if !errors.Is(err, c.kind) {
				t.Errorf("error %v\nis not %v", err, c.kind)
			}
			for _, s := range c.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("error %v\ndoes not say %q", err, s)
				}
			}
			if errors.Is(err, ErrRegistryUnavailable) != (err != nil && strings.HasPrefix(err.Error(), "RegistryUnavailable: ")) {
				t.Errorf("the kubelet misreads %v", err)
			}
			n.mustBeEmpty(t)
		})
	}
}
