package trust

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const anyName = `{"type":"matchDigest"}`

// Bundles of every kind of key, of both kinds, count for the manifest that they are of.
func TestBundles(t *testing.T) {
	const name = "example.com/x:v1"
	d, manifest := sum("x"), []byte("x")
	for key := range signers() {
		if key == "p224" || key == "other" {
			continue
		}
		for kind, bundle := range map[string][]byte{"envelope": envelope(t, key, statement("", d)), "message": messageSignature(t, key, manifest)} {
			t.Run(key+" "+kind, func(t *testing.T) {
				r := &repository{}
				r.refer(t, d, bundle)
				r.manifests[d] = manifest
				img := imageOf(t, name, "x")
				if err := signedPolicy(t, key, anyName).Check(t.Context(), img, NewEvidence(r)); err != nil {
					t.Error(err)
				}
				if err := signedPolicy(t, "other", anyName).Check(t.Context(), img, NewEvidence(r)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not by a key of the policy") {
					t.Errorf("with another key: %v", err)
				}
			})
		}
	}
}

// A statement may name what it is of; that is held against signedIdentity as any signature's name.
func TestBundleIdentities(t *testing.T) {
	for _, row := range []struct {
		identity, named, want string
	}{
		{"", "example.com/x:v1", ""},
		{"", "example.com/x", "matchRepository accepts that"},
		{"", "", "signedIdentity matchDigest accepts that"},
		{repositoryOnly, "example.com/x", ""},
		{repositoryOnly, "example.com/y", `not for "example.com/x"`},
		{repositoryOnly, "", "it says nothing of a name"},
		{anyName, "", ""},
		{anyName, "example.com/y", ""},
	} {
		r := &repository{}
		r.refer(t, sum("x"), envelope(t, "p256", statement(row.named, sum("x"))))
		err := signedPolicy(t, "p256", row.identity).Check(t.Context(), imageOf(t, "example.com/x:v1", "x"), NewEvidence(r))
		if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s named %q: %v instead of %q", row.identity, row.named, err, row.want)
		}
	}
}

// What does not count, one way each to lie.
func TestBundlesThatDoNotCount(t *testing.T) {
	d := sum("x")
	good := statement("", d)
	edit := func(old, new string) func(*testing.T, *repository) {
		return func(t *testing.T, r *repository) {
			if !strings.Contains(good, old) {
				t.Fatalf("no %q", old)
			}
			r.refer(t, d, envelope(t, "p256", strings.Replace(good, old, new, 1)))
		}
	}
	spoil := func(old, new string) func(*testing.T, *repository) {
		return func(t *testing.T, r *repository) {
			b := string(envelope(t, "p256", good))
			if !strings.Contains(b, old) {
				t.Fatalf("no %q", old)
			}
			r.refer(t, d, []byte(strings.Replace(b, old, new, 1)))
		}
	}
	for _, row := range []struct {
		name   string
		attach func(*testing.T, *repository)
		want   string
	}{
		{"of another manifest, replayed", func(t *testing.T, r *repository) { r.refer(t, d, envelope(t, "p256", statement("", sum("y")))) }, "it is for " + sum("y").String()},
		{"an attestation", edit(signPredicate, "https://slsa.dev/provenance/v1"), `predicateType: "https://slsa.dev/provenance/v1"`},
		{"statement of another version", edit("Statement/v1", "Statement/v0.1"), "_type: "},
		{"statement of nothing", edit(`[{"digest"`, `[],"predicate":{"x"`), "statement: "},
		{"subjects that are none", edit(`[{"digest":{"sha256":"`+d.Encoded()+`"}}]`, `"x"`), "subject: not a list"},
		{"no subjects", edit(`[{"digest":{"sha256":"`+d.Encoded()+`"}}]`, `[]`), "it is for nothing"},
		{"subject with a bad digest", edit(d.Encoded(), "00"), "subject 1: digest"},
		{"subject with a bad name", edit(`{"digest"`, `{"name":"UPPER","digest"`), "subject 1: name"},
		{"a key twice in the statement", edit(`"predicate":`, `"predicate":1,"predicate":`), `key "predicate" is there twice`},
		{"a key in capitals in the statement", edit(`"predicate":`, `"Predicate":`), `key "Predicate" is unknown`},
		{"many subjects", edit(`"subject":[`, `"subject":[`+strings.Repeat(`{"digest":{}},`, 65)), "more than 64"},
		{"a key of an envelope in small letters", func(t *testing.T, r *repository) {
			b := strings.Replace(string(envelope(t, "p256", good)), "payloadType", "payloadtype", 1)
			r.refer(t, d, []byte(b))
		}, `key "payloadType" is missing`},
		{"another payload type", spoil(`"payloadType":"application/vnd.in-toto+json"`, `"payloadType":"text/plain"`), "payloadType"},
		{"two signatures", spoil(`"signatures":[`, `"signatures":[{"sig":"eA=="},`), "not a list of one"},
		{"no base64", spoil(`"payload":"`, `"payload":"!`), "payload: not base64"},
		{"another media type", spoil("v0.3+json", "v0.4+json"), "mediaType"},
		{"unknown key", spoil(`"mediaType"`, `"more":1,"mediaType"`), `key "more" is unknown`},
		{"no material", spoil("verificationMaterial", "mediatype"), `key "mediatype" is unknown`},
		{"both kinds", spoil(`"dsseEnvelope"`, `"messageSignature":{"signature":"eA=="},"dsseEnvelope"`), "both messageSignature and dsseEnvelope"},
		{"neither kind", func(t *testing.T, r *repository) {
			r.refer(t, d, []byte(`{"mediaType":"`+bundleType+`","verificationMaterial":{}}`))
		}, "neither messageSignature nor dsseEnvelope"},
		{"message of something else", func(t *testing.T, r *repository) {
			r.refer(t, d, messageSignature(t, "p256", []byte("y")))
			r.manifests[d] = []byte("x")
		}, "something else than the manifest"},
		{"message with another signature", func(t *testing.T, r *repository) {
			r.refer(t, d, messageSignature(t, "other", []byte("x")))
			r.manifests[d] = []byte("x")
		}, "not by a key of the policy"},
		{"a signature of the old kind as a message", func(t *testing.T, r *repository) {
			r.refer(t, d, messageSignature(t, "p256", payloadFor("example.com/x:v1", d)))
			r.manifests[d] = []byte("x")
		}, "something else than the manifest"},
		{"that refers to another manifest", func(t *testing.T, r *repository) {
			r.refer(t, sum("y"), envelope(t, "p256", good))
			r.referrers[d] = r.referrers[sum("y")]
		}, "does not refer to the image's"},
		{"huge", func(t *testing.T, r *repository) { r.refer(t, d, []byte(strings.Repeat(" ", maxBundle+1))) }, "at most 262144 are read"},
		{"missing", func(t *testing.T, r *repository) {
			r.refer(t, d, envelope(t, "p256", good))
			clear(r.manifests)
		}, "not in the repository"},
		{"of another type", func(t *testing.T, r *repository) {
			r.refer(t, d, envelope(t, "p256", good))
			r.referrers[d][0].ArtifactType = "application/x"
		}, "it has no signature"},
		{"out of reach", func(t *testing.T, r *repository) {
			for i := range maxBundles {
				r.refer(t, d, fmt.Append(nil, i))
			}
			r.refer(t, d, envelope(t, "p256", good))
		}, "and 61 more"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := &repository{}
			row.attach(t, r)
			err := signedPolicy(t, "p256", anyName).Check(t.Context(), imageOf(t, "example.com/x:v1", "x"), NewEvidence(r))
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v instead of %q", err, row.want)
			}
			if len(r.asked) > 2+2*maxBundles || len(err.Error()) > 2000 {
				t.Errorf("%d requests, an error of %d bytes", len(r.asked), len(err.Error()))
			}
		})
	}
}

// Bundles that say that they are attestations are not fetched; one signature is enough, of whichever kind, and asked for last.
func TestBundlesAreFetchedWhenWanted(t *testing.T) {
	const name = "example.com/x:v1"
	r := &repository{}
	attestation := r.refer(t, sum("x"), envelope(t, "p256", strings.Replace(statement("", sum("x")), signPredicate, "https://spdx.dev/Document", 1)))
	r.referrers[sum("x")][0].Annotations = map[string]string{annotationPredicate: "https://spdx.dev/Document"}
	r.refer(t, sum("x"), envelope(t, "other", statement("", sum("x"))))
	r.refer(t, sum("x"), envelope(t, "p256", statement("", sum("x"))))
	if err := signedPolicy(t, "p256", anyName).Check(t.Context(), imageOf(t, name, "index", "x"), NewEvidence(r)); err != nil {
		t.Error(err)
	}
	for _, asked := range r.asked {
		if asked == attestation.Digest.String() {
			t.Error("the attestation was fetched")
		}
	}
	r.asked = nil
	r.sign(t, "p256", name, sum("x"))
	if err := signedPolicy(t, "p256", "").Check(t.Context(), imageOf(t, name, "x"), NewEvidence(r)); err != nil || len(r.asked) != 2 {
		t.Errorf("with a signature of the old kind: %v, asked for %q", err, r.asked)
	}
	broken := errors.New("connection reset")
	r = &repository{failed: broken}
	if err := signedPolicy(t, "p256", anyName).Check(t.Context(), imageOf(t, name, "x"), NewEvidence(r)); !errors.Is(err, broken) || errors.Is(err, ErrRefused) {
		t.Errorf("a registry that fails: %v", err)
	}
}

// What rule counts for an archive.
func TestArchiveRules(t *testing.T) {
	const policy = `{"default":[{"type":"reject"}],"transports":{"docker":{"example.com":[{"type":"insecureAcceptAnything"}]},"docker-archive":{"":[{"type":"insecureAcceptAnything"}]},"oci":{"":[{"type":"reject"}]}}}`
	p := mustLoad(t, policy)
	for _, row := range []struct{ transport, name, want string }{
		{DockerArchive, "other.com/x:v1", ""},
		{DockerArchive, "", ""},
		{OCIArchive, "example.com/x:v1", ""},
		{OCIArchive, "other.com/x:v1", "default: requirement 1, reject"},
		{OCIArchive, "", "default: requirement 1, reject"},
		{OCILayout, "example.com/x:v1", `transports.oci[""]: requirement 1, reject`},
	} {
		img := Image{Chain: imageOf(t, "x", "x").Chain}
		if row.name != "" {
			img = imageOf(t, row.name, "x")
		}
		img.Transport = row.transport
		err := p.Check(t.Context(), img, NewEvidence(&repository{}))
		if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%+v: %v", row, err)
		}
	}
	nameless := Image{Transport: OCIArchive, Chain: imageOf(t, "x", "x").Chain}
	r := &repository{}
	r.sign(t, "p256", "example.com/x:v1", sum("x"))
	named := mustLoad(t, `{"default":[{"type":"sigstoreSigned","keyData":"`+keyData(t, "p256")+`"}]}`)
	if err := named.Check(t.Context(), nameless, NewEvidence(r)); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "the image has no name") {
		t.Errorf("signed, without a name: %v", err)
	}
	if _, err := load(t, `{"default":[{"type":"reject"}],"transports":{"oci-archive":{"/archives":[{"type":"reject"}]}}}`); err == nil || !strings.Contains(err.Error(), `transports.oci-archive["/archives"]: where an archive lies`) {
		t.Errorf("a path: %v", err)
	}
}

func FuzzBundle(f *testing.F) {
	d := sum("x")
	f.Add(envelope(f, "p256", statement("", d)))
	f.Add(envelope(f, "ed25519", statement("example.com/x", d)))
	f.Add(messageSignature(f, "p256", []byte("x")))
	f.Add([]byte(`{"mediaType":"` + bundleType + `","verificationMaterial":{},"dsseEnvelope":{"payload":"","payloadType":"","signatures":[null]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parseBundle(data)
		if err != nil {
			return
		}
		if len(b.signature) == 0 || b.envelope == (len(b.payload) == 0) {
			t.Errorf("%q gives %+v", data, b)
		}
		_ = b.matches(data)
	})
}

func FuzzStatement(f *testing.F) {
	d := sum("x")
	f.Add([]byte(statement("", d)))
	f.Add([]byte(statement("example.com/x:v1", d)))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[null,{"digest":{"sha256":1}}],"predicateType":"https://sigstore.dev/cosign/sign/v1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		name, err := parseStatement(data, d)
		if err == nil && !strings.Contains(string(data), d.Encoded()) && !strings.Contains(string(data), `\`) {
			t.Errorf("%q is for %s", data, d)
		}
		if name != nil && (err != nil || name.Name() == "") {
			t.Errorf("%q has name %v, %v", data, name, err)
		}
	})
}

func FuzzAttached(f *testing.F) {
	r := &repository{}
	desc := r.refer(f, sum("x"), envelope(f, "p256", statement("", sum("x"))))
	f.Add(r.manifests[desc.Digest])
	f.Add([]byte(`{"subject":null,"layers":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		desc, err := parseAttached(data, sum("x"))
		if err == nil && (desc.Size < 0 || desc.Size > maxBundle || desc.Digest.Validate() != nil || desc.Digest == digest.Digest("")) {
			t.Errorf("%q gives %+v", data, desc)
		}
	})
}
