package trust

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const accept, reject = `[{"type":"insecureAcceptAnything"}]`, `[{"type":"reject"}]`

// Of the scopes that a name is in the most specific one counts, alone.
func TestScopes(t *testing.T) {
	docker := func(scopes string) string {
		return `{"default":` + reject + `,"transports":{"docker":{` + scopes + `}}}`
	}
	digest := "@" + sum("x").String()
	for _, row := range []struct {
		name, policy, image string
		rule                string // of the refusal; empty: accepted
	}{
		{"default", docker(""), "busybox", "default"},
		{"default accepts", `{"default":` + accept + `}`, "busybox", ""},
		{"other transports have no say", `{"default":` + reject + `,"transports":{"docker-daemon":{"":` + accept + `}}}`, "busybox", "default"},
		{"all of the transport", docker(`"":` + accept), "busybox", ""},
		{"host", docker(`"docker.io":` + accept), "busybox", ""},
		{"another host", docker(`"docker.io":` + accept), "quay.io/x/y", "default"},
		{"host with port", docker(`"localhost:5000":` + accept), "localhost:5000/x", ""},
		{"host without its port", docker(`"localhost":` + accept), "localhost:5000/x", "default"},
		{"namespace", docker(`"docker.io/library":` + accept), "busybox:1", ""},
		{"begin of a namespace's name", docker(`"docker.io/lib":` + accept), "busybox:1", "default"},
		{"nested namespaces", docker(`"quay.io/a":` + reject + `,"quay.io/a/b":` + accept), "quay.io/a/b/c", ""},
		{"repository over namespace", docker(`"docker.io/library":` + accept + `,"docker.io/library/busybox":` + reject), "busybox", `["docker.io/library/busybox"]`},
		{"repository over host, accepting", docker(`"docker.io":` + reject + `,"docker.io/library/busybox":` + accept), "busybox", ""},
		{"tag over repository", docker(`"docker.io/library/busybox":` + accept + `,"docker.io/library/busybox:bad":` + reject), "busybox:bad", `["docker.io/library/busybox:bad"]`},
		{"another tag", docker(`"docker.io/library/busybox":` + accept + `,"docker.io/library/busybox:bad":` + reject), "busybox:good", ""},
		{"latest is said", docker(`"docker.io/library/busybox:latest":` + accept), "busybox", ""},
		{"digest", docker(`"docker.io/library/busybox` + digest + `":` + accept), "busybox" + digest, ""},
		{"tag is no digest's", docker(`"docker.io/library/busybox:v1":` + accept), "busybox:v1" + digest, "default"},
		{"short names are no scopes", docker(`"busybox":` + accept), "busybox", "default"},
		{"subdomain", docker(`"*.example.com":` + accept), "registry.example.com:5000/x", ""},
		{"deeper subdomain", docker(`"*.example.com":` + accept + `,"*.eu.example.com":` + reject), "a.eu.example.com/x", `["*.eu.example.com"]`},
		{"not the domain itself", docker(`"*.example.com":` + accept), "example.com/x", "default"},
		{"host over subdomain", docker(`"*.example.com":` + reject + `,"a.example.com":` + accept), "a.example.com/x", ""},
		{"subdomain over all", docker(`"":` + accept + `,"*.com":` + reject), "example.com/x", `["*.com"]`},
		{"all requirements", docker(`"":[{"type":"insecureAcceptAnything"},{"type":"reject"}]`), "busybox", "requirement 2, reject"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := mustLoad(t, row.policy).Check(t.Context(), imageOf(t, row.image, "x"), NewEvidence(&repository{}))
			switch {
			case row.rule == "" && err != nil:
				t.Errorf("refused: %v", err)
			case row.rule != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), row.rule)):
				t.Errorf("%v instead of a refusal by %s", err, row.rule)
			}
		})
	}
}

// What is not understood as it was meant is an error, with the place.
func TestPolicyFaults(t *testing.T) {
	key := keyData(t, "p256")
	rule := func(requirement string) string { return `{"default":[` + requirement + `]}` }
	signed := func(more string) string { return rule(`{"type":"sigstoreSigned",` + more + `}`) }
	identity := func(id string) string { return signed(`"keyData":"` + key + `","signedIdentity":` + id) }
	docker := func(scope string) string {
		return `{"default":` + reject + `,"transports":{"docker":{"` + scope + `":` + accept + `}}}`
	}
	dir := t.TempDir()
	two := filepath.Join(dir, "two.pem")
	if err := os.WriteFile(two, append(signers()["p256"].pem(t), signers()["rsa"].pem(t)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ name, policy, want string }{
		{"empty", "", "ends too early"},
		{"cut off", `{"default":[`, "default: "},
		{"not an object", `[]`, "instead of an object"},
		{"null", `null`, "null instead of an object"},
		{"more behind it", `{"default":` + accept + `} {}`, "more follows"},
		{"no default", `{}`, `"default" is missing`},
		{"no requirement", `{"default":[]}`, "default: there is no requirement"},
		{"null for requirements", `{"default":null}`, "default: "},
		{"unknown key", `{"default":` + accept + `,"Default":` + reject + `}`, `key "Default" is unknown`},
		{"key twice", `{"default":` + accept + `,"default":` + reject + `}`, `key "default" is there twice`},
		{"scope twice", `{"default":` + accept + `,"transports":{"docker":{"a.b":` + reject + `,"a.b":` + accept + `}}}`, `key "a.b" is there twice`},
		{"type twice", rule(`{"type":"reject","type":"insecureAcceptAnything"}`), `key "type" is there twice`},
		{"unknown transport", `{"default":` + accept + `,"transports":{"dockr":{}}}`, `transports: "dockr" is unknown`},
		{"unknown requirement", rule(`{"type":"acceptAnything"}`), `default: requirement 1: type "acceptAnything": the type is unknown`},
		{"no type", rule(`{}`), "type: not a string"},
		{"GPG", rule(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}`), "GPG signatures are not supported"},
		{"GPG of another transport", `{"default":` + accept + `,"transports":{"atomic":{"":[{"type":"signedBy"}]}}}`, "GPG signatures are not supported"},
		{"unknown key of a requirement", rule(`{"type":"reject","keyPath":"/x"}`), `key "keyPath" is unknown`},
		{"no key", rule(`{"type":"sigstoreSigned"}`), "one of keyPath, keyPaths, keyData and keyDatas is needed"},
		{"two kinds of keys", signed(`"keyPath":"/x","keyData":"x"`), "both keyPath and keyData"},
		{"key is not there", signed(`"keyPath":"/no/such/key"`), "keyPath: key 1: open /no/such/key"},
		{"key is a directory", signed(`"keyPath":"` + dir + `"`), "is not a regular file"},
		{"relative key", signed(`"keyPath":"key.pem"`), "not an absolute path"},
		{"several keys in a file", signed(`"keyPath":"` + two + `"`), "more than one PEM block"},
		{"not base64", signed(`"keyData":"%"`), "not base64"},
		{"not PEM", signed(`"keyDatas":["` + key + `","eA=="]`), "keyDatas: key 2: not PEM"},
		{"empty list", signed(`"keyDatas":[]`), "at least one"},
		{"unsupported curve", signed(`"keyData":"` + keyData(t, "p224") + `"`), "another curve"},
		{"Fulcio", signed(`"fulcio":{}`), "fulcio: certificates and transparency logs are not supported"},
		{"Rekor", signed(`"keyData":"` + key + `","rekorPublicKeyPath":"/x"`), "rekorPublicKeyPath: certificates and"},
		{"unknown key of sigstoreSigned", signed(`"keyData":"` + key + `","signedIdentiy":{}`), `key "signedIdentiy" is unknown`},
		{"unknown identity", identity(`{"type":"any"}`), `signedIdentity: type "any" is unknown`},
		{"identity with more", identity(`{"type":"matchExact","dockerReference":"x"}`), `key "dockerReference" is unknown`},
		{"exactReference without a tag", identity(`{"type":"exactReference","dockerReference":"busybox"}`), "neither tag nor digest"},
		{"exactReference of nothing", identity(`{"type":"exactReference"}`), "dockerReference: not a string"},
		{"exactRepository with a tag", identity(`{"type":"exactRepository","dockerRepository":"busybox:1"}`), "has a tag"},
		{"remapIdentity with a tag", identity(`{"type":"remapIdentity","prefix":"a.b/c:1","signedPrefix":"d.e"}`), "prefix: "},
		{"remapIdentity without one", identity(`{"type":"remapIdentity","prefix":"a.b/c"}`), "signedPrefix: "},
		{"remapIdentity, short", identity(`{"type":"remapIdentity","prefix":"a.b","signedPrefix":"library/x"}`), "signedPrefix: "},
		{"scope with a scheme", docker("https://quay.io"), "without a scheme"},
		{"scope with a slash", docker("quay.io/"), "without a scheme and a /"},
		{"scope with a star inside", docker("quay.io/*"), "a * stands only for"},
		{"scope with a star and a port", docker("*.quay.io:5000"), "without a port"},
		{"too large", `{"default":` + accept + strings.Repeat(" ", maxPolicy) + `}`, "more than"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := load(t, row.policy)
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "policy") {
				t.Errorf("%v instead of %q", err, row.want)
			}
		})
	}
	if _, err := Load(filepath.Join(dir, "absent.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}

func TestKeySources(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"p256", "rsa"} {
		if err := os.WriteFile(filepath.Join(dir, name), signers()[name].pem(t), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	img := imageOf(t, "example.com/x:v1", "x")
	for _, source := range []string{
		fmt.Sprintf(`"keyPath":%q`, filepath.Join(dir, "rsa")),
		fmt.Sprintf(`"keyPaths":[%q,%q]`, filepath.Join(dir, "p256"), filepath.Join(dir, "rsa")),
		fmt.Sprintf(`"keyData":%q`, keyData(t, "rsa")),
		fmt.Sprintf(`"keyDatas":[%q,%q]`, keyData(t, "p256"), keyData(t, "rsa")),
	} {
		p := mustLoad(t, `{"default":[{"type":"sigstoreSigned",`+source+`}]}`)
		good, bad := &repository{}, &repository{}
		good.sign(t, "rsa", "example.com/x:v1", sum("x"))
		bad.sign(t, "other", "example.com/x:v1", sum("x"))
		if err := p.Check(t.Context(), img, NewEvidence(good)); err != nil {
			t.Errorf("%s: %v", source, err)
		}
		if err := p.Check(t.Context(), img, NewEvidence(bad)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", source, err)
		}
	}
}
