package trust

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func signedPolicy(t testing.TB, key, identity string) *Policy {
	t.Helper()
	if identity != "" {
		identity = `,"signedIdentity":` + identity
	}
	return mustLoad(t, `{"default":`+reject+`,"transports":{"docker":{"example.com":[{"type":"sigstoreSigned","keyData":"`+keyData(t, key)+`"`+identity+`}]}}}`)
}

func TestSignatureAlgorithms(t *testing.T) {
	for name := range signers() {
		if name == "p224" || name == "other" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := &repository{}
			r.sign(t, name, "example.com/x:v1", sum("x"))
			img := imageOf(t, "example.com/x:v1", "x")
			if err := signedPolicy(t, name, "").Check(t.Context(), img, NewEvidence(r)); err != nil {
				t.Error(err)
			}
			if err := signedPolicy(t, "other", "").Check(t.Context(), img, NewEvidence(r)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not by a key of the policy") {
				t.Errorf("with another key: %v", err)
			}
		})
	}
}

const repositoryOnly = `{"type":"matchRepository"}`

func TestIdentities(t *testing.T) {
	byDigest := "example.com/x@" + sum("x").String()
	exactly := `{"type":"exactReference","dockerReference":"origin.example.org/y:v2"}`
	repo := `{"type":"exactRepository","dockerRepository":"origin.example.org/y"}`
	remap := `{"type":"remapIdentity","prefix":"example.com/mirror","signedPrefix":"origin.example.org/team"}`
	remapHost := `{"type":"remapIdentity","prefix":"example.com","signedPrefix":"origin.example.org:5000"}`
	for _, row := range []struct {
		identity, image, signed string
		want                    string // of the refusal; empty: accepted
	}{
		{"", "example.com/x:v1", "example.com/x:v1", ""},
		{"", "example.com/x:v1", "example.com/x:v2", `it is for "example.com/x:v2", not for "example.com/x:v1"`},
		{"", "example.com/x:v1", "example.com/y:v1", `not for "example.com/x:v1"`},
		{"", "example.com/x:v1", "example.com/x", "as cosign signs; signedIdentity matchRepository accepts that"},
		{"", byDigest, "example.com/x:v2", ""},
		{"", byDigest, "example.com/x", "matchRepository accepts that"},
		{"", byDigest, "example.com/y:v1", "not for"},
		{`{"type":"matchRepoDigestOrExact"}`, byDigest, "example.com/x:v2", ""},
		{`{"type":"matchExact"}`, "example.com/x:v1", "example.com/x:v1", ""},
		{`{"type":"matchExact"}`, "example.com/x:v1", "example.com/x:v2", "not for"},
		{`{"type":"matchExact"}`, byDigest, "example.com/x:v1", "not for"},
		{`{"type":"matchExact"}`, byDigest, byDigest, ""},
		{repositoryOnly, "example.com/x:v1", "example.com/x", ""},
		{repositoryOnly, "example.com/x:v1", "example.com/x:v2", ""},
		{repositoryOnly, "example.com/x:v1", "example.com/x/y", `not for "example.com/x"`},
		{repositoryOnly, byDigest, "example.com/x", ""},
		{exactly, "example.com/x:v1", "origin.example.org/y:v2", ""},
		{exactly, "example.com/x:v1", "example.com/x:v1", "not for"},
		{exactly, "example.com/x:v1", "origin.example.org/y", "not for"},
		{repo, "example.com/x:v1", "origin.example.org/y", ""},
		{repo, "example.com/x:v1", "origin.example.org/y:v7", ""},
		{repo, "example.com/x:v1", "example.com/x", "not for"},
		{remap, "example.com/mirror/x:v1", "origin.example.org/team/x:v1", ""},
		{remap, "example.com/mirror/x:v1", "example.com/mirror/x:v1", "not for"},
		{remap, "example.com/mirror/x@" + sum("x").String(), "origin.example.org/team/x:v1", ""},
		{remap, "example.com/mirrors/x:v1", "example.com/mirrors/x:v1", ""},
		{remap, "example.com/mirrors/x:v1", "origin.example.org/teams/x:v1", "not for"},
		{remapHost, "example.com/x:v1", "origin.example.org:5000/x:v1", ""},
	} {
		t.Run(fmt.Sprintf("%s %s signed as %s", row.identity, row.image, row.signed), func(t *testing.T) {
			r := &repository{}
			r.sign(t, "p256", row.signed, sum("x"))
			err := signedPolicy(t, "p256", row.identity).Check(t.Context(), imageOf(t, row.image, "x"), NewEvidence(r))
			switch {
			case row.want == "" && err != nil:
				t.Error(err)
			case row.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.want)):
				t.Errorf("%v instead of %q", err, row.want)
			}
		})
	}
}

// What does not count, one way each to lie.
func TestSignaturesThatDoNotCount(t *testing.T) {
	const name = "example.com/x:v1"
	d := sum("x")
	good := payloadFor(name, d)
	by := func(key string, payload []byte) []byte { return signers()[key].sign(t, payload) }
	for _, row := range []struct {
		name   string
		attach func(r *repository)
		want   string
	}{
		{"none", func(*repository) {}, "it has no signature"},
		{"of another image only", func(r *repository) { r.sign(t, "p256", name, sum("y")) }, "it has no signature"},
		{"by another key", func(r *repository) { r.sign(t, "other", name, d) }, "not by a key of the policy"},
		{"replayed from another manifest", func(r *repository) {
			p := payloadFor(name, sum("y"))
			r.attach(t, d, p, by("p256", p))
		}, "it is for manifest " + sum("y").String()},
		{"of another payload", func(r *repository) { r.attach(t, d, good, by("p256", payloadFor(name, sum("y")))) }, "not by a key of the policy"},
		{"empty signature", func(r *repository) { r.attach(t, d, good, nil) }, "is not base64"},
		{"truncated signature", func(r *repository) { r.attach(t, d, good, by("p256", good)[:20]) }, "not by a key"},
		{"payload is not JSON", func(r *repository) { p := []byte("x"); r.attach(t, d, p, by("p256", p)) }, "payload: "},
		{"payload is empty", func(r *repository) { p := []byte{}; r.attach(t, d, p, by("p256", p)) }, "payload: "},
		{"payload of another type", func(r *repository) {
			p := []byte(strings.Replace(string(good), "cosign container", "atomic container", 1))
			r.attach(t, d, p, by("p256", p))
		}, `critical.type: "atomic container image signature"`},
		{"payload with a key twice", func(r *repository) {
			p := []byte(strings.Replace(string(good), `"image":`, `"image":{"docker-manifest-digest":"`+sum("y").String()+`"},"image":`, 1))
			r.attach(t, d, p, by("p256", p))
		}, `key "image" is there twice`},
		{"payload with a key in capitals", func(r *repository) {
			p := []byte(strings.Replace(string(good), `"image":`, `"Image":{},"image":`, 1))
			r.attach(t, d, p, by("p256", p))
		}, `key "Image" is unknown`},
		{"payload without optional", func(r *repository) {
			p := []byte(strings.Replace(string(good), `,"optional":null`, "", 1))
			r.attach(t, d, p, by("p256", p))
		}, `"optional" is missing`},
		{"payload with a bad digest", func(r *repository) { p := payloadFor(name, "sha256:1"); r.attach(t, d, p, by("p256", p)) }, "docker-manifest-digest"},
		{"payload with a bad name", func(r *repository) { p := payloadFor("UPPER", d); r.attach(t, d, p, by("p256", p)) }, "docker-reference"},
		{"huge payload", func(r *repository) {
			p := []byte(strings.Replace(string(good), "null", `{"x":"`+strings.Repeat("x", maxPayload)+`"}`, 1))
			r.attach(t, d, p, by("p256", p))
		}, "at most 65536 are read"},
		{"payload is missing", func(r *repository) { r.sign(t, "p256", name, d); clear(r.blobs) }, "not in the repository"},
		{"manifest is not one", func(r *repository) { r.tags = map[string][]byte{"sha256-" + d.Encoded() + ".sig": []byte("[]")} }, "signatures of " + d.String()},
		{"good, but out of reach", func(r *repository) {
			r.sign(t, "p256", name, d)
			for range maxSignatures {
				r.attach(t, d, []byte("x"), []byte("x"))
			}
		}, "and 61 more"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &repository{}
			row.attach(r)
			err := signedPolicy(t, "p256", "").Check(t.Context(), imageOf(t, name, "x"), NewEvidence(r))
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v instead of %q", err, row.want)
			}
			if len(r.asked) > 2+maxSignatures || len(err.Error()) > 2000 {
				t.Errorf("%d requests, an error of %d bytes", len(r.asked), len(err.Error()))
			}
		})
	}
}

func TestOneSignatureIsEnough(t *testing.T) {
	const name = "example.com/x:v1"
	index, manifest := sum("index"), sum("manifest")
	r := &repository{}
	r.sign(t, "other", name, index)
	r.attach(t, index, []byte("junk"), []byte("junk"))
	r.sign(t, "p256", name, index)
	p := signedPolicy(t, "p256", "")
	if err := p.Check(t.Context(), imageOf(t, name, "index", "manifest"), NewEvidence(r)); err != nil {
		t.Errorf("the index is signed: %v", err)
	}
	if slices.Contains(r.asked, "sha256-"+manifest.Encoded()+".sig") {
		t.Errorf("asked for %q though the index is signed", r.asked)
	}
	r = &repository{}
	r.sign(t, "other", name, index)
	r.sign(t, "p256", name, manifest)
	if err := p.Check(t.Context(), imageOf(t, name, "index", "manifest"), NewEvidence(r)); err != nil {
		t.Errorf("the manifest is signed: %v", err)
	}
	if err := p.Check(t.Context(), imageOf(t, name, "index", "another manifest"), NewEvidence(r)); !errors.Is(err, ErrRefused) {
		t.Errorf("another manifest: %v", err)
	}
}

// Several requirements look at the same evidence, and ask for it once.
func TestRequirementsShareEvidence(t *testing.T) {
	r := &repository{}
	r.sign(t, "p256", "example.com/x:v1", sum("x"))
	r.sign(t, "rsa", "example.com/x:v1", sum("x"))
	want := func(keys ...string) string {
		var all []string
		for _, k := range keys {
			all = append(all, `{"type":"sigstoreSigned","keyData":"`+keyData(t, k)+`"}`)
		}
		return `{"default":[` + strings.Join(all, ",") + `]}`
	}
	img := imageOf(t, "example.com/x:v1", "x")
	if err := mustLoad(t, want("p256", "rsa")).Check(t.Context(), img, NewEvidence(r)); err != nil {
		t.Error(err)
	}
	if len(r.asked) != 3 { // the manifest, and the payload of each signature
		t.Errorf("asked for %q", r.asked)
	}
	if err := mustLoad(t, want("p256", "other")).Check(t.Context(), img, NewEvidence(r)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "requirement 2") {
		t.Errorf("second signer is missing: %v", err)
	}
}

// A registry that fails is no refusal, unless another signature counts.
func TestFailuresAreNoRefusals(t *testing.T) {
	const name = "example.com/x:v1"
	broken := errors.New("connection reset")
	r := &repository{failed: broken}
	r.sign(t, "p256", name, sum("x"))
	err := signedPolicy(t, "p256", "").Check(t.Context(), imageOf(t, name, "x"), NewEvidence(r))
	if !errors.Is(err, broken) || errors.Is(err, ErrRefused) {
		t.Errorf("%v", err)
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(payloadFor("example.com/x:v1", sum("x")))
	f.Add([]byte(`{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + sum("x").String() + `"},"type":"cosign container image signature"},"optional":{"creator":"x","timestamp":1}}`))
	f.Add([]byte(`{"critical":{},"optional":{"a":1,"a":2}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePayload(data)
		if err == nil && (p.digest.Validate() != nil || p.name == nil || p.name.Name() == "") {
			t.Errorf("%q gives %+v", data, p)
		}
	})
}

func FuzzSignatures(f *testing.F) {
	r := &repository{}
	r.sign(f, "p256", "example.com/x:v1", sum("x"))
	for _, manifest := range r.tags {
		f.Add(manifest)
	}
	f.Add([]byte(`{"layers":[null,{},{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","size":-1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseSignatures(data)
		if len(all) > maxSignatures {
			t.Errorf("%d signatures", len(all))
		}
		for _, s := range all {
			if err == nil && s.err == nil && (s.desc.Size > maxPayload || s.desc.Size < 0 || s.desc.Digest.Validate() != nil || len(s.bytes) == 0) {
				t.Errorf("signature %+v", s)
			}
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"default":` + accept + `}`))
	f.Add([]byte(`{"default":` + reject + `,"transports":{"docker":{"":` + accept + `,"*.example.com":` + reject + `,"example.com/x@` + sum("x").String() + `":` + accept + `},"oci":{"":` + accept + `}}}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","keyData":"` + keyData(f, "p256") + `","signedIdentity":{"type":"remapIdentity","prefix":"a.b/c","signedPrefix":"d.e"}}]}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","keyDatas":["` + keyData(f, "ed25519") + `"],"signedIdentity":{"type":"exactReference","dockerReference":"a.b/c:d"}}]}`))
	img := imageOf(f, "example.com/x:v1", "x")
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "Path") { // files of the machine
			return
		}
		p, err := parse(data)
		if err != nil {
			return
		}
		r := p.ruleFor(img)
		if len(r.requirements) == 0 {
			t.Errorf("%q has a rule without requirements", data)
		}
		_ = p.Check(t.Context(), img, NewEvidence(&repository{tags: map[string][]byte{}, blobs: map[digest.Digest][]byte{}})) // whatever it says
	})
}
