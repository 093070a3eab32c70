package credentials

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const secret = "hunter2"

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func config(t *testing.T, text string) *Store {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(Config{File: name})
}

// helper puts a program of a shell script's text into PATH.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, helperPrefix+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestWhichEntryCounts(t *testing.T) {
	user := func(name string) string { return fmt.Sprintf(`{"auth":%q}`, b64(name+":"+secret)) }
	file := fmt.Sprintf(`{"HttpHeaders":{"a":"b"},"auths":{
		"https://index.docker.io/v1/":%s, "quay.io":%s, "quay.io/team":%s, "quay.io/team/app":%s, "https://old.test:5000/v2/":%s,
		"reg.test:5000":{"username":"plain","password":"hunter2"}, "id.test":{"auth":%q,"identitytoken":"hunter2"},
		"token.test":{"registrytoken":"hunter2"}, "login.test":{}, "padded.test":{"auth":%q}}}`,
		user("hub"), user("quay"), user("team"), user("app"), user("old"), b64("<token>:"), b64("nul:"+secret+"\x00\x00"))
	s := config(t, file)
	for _, c := range []struct {
		host, repository string
		want             Credential
	}{
		{"docker.io", "library/busybox", Credential{Username: "hub", Password: secret}},
		{"registry-1.docker.io", "library/busybox", Credential{Username: "hub", Password: secret}},
		{"quay.io", "other/app", Credential{Username: "quay", Password: secret}},
		{"QUAY.io", "other/app", Credential{Username: "quay", Password: secret}},
		{"quay.io", "team/other", Credential{Username: "team", Password: secret}},
		{"quay.io", "team/app", Credential{Username: "app", Password: secret}},
		{"quay.io", "team/app2", Credential{Username: "team", Password: secret}},
		{"quay.io", "teams/app", Credential{Username: "quay", Password: secret}},
		{"quay.io:443", "app", Credential{}},
		{"evil.quay.io", "app", Credential{}},
		{"io", "app", Credential{}},
		{"old.test:5000", "app", Credential{Username: "old", Password: secret}},
		{"reg.test:5000", "app", Credential{Username: "plain", Password: secret}},
		{"reg.test", "app", Credential{}},
		{"id.test", "app", Credential{Username: "<token>", IdentityToken: secret}},
		{"token.test", "app", Credential{RegistryToken: secret}},
		{"login.test", "app", Credential{}},
		{"padded.test", "app", Credential{Username: "nul", Password: secret}},
	} {
		got, err := s.Find(t.Context(), c.host, c.repository)
		if !c.want.Anonymous() {
			c.want.Origin = s.cfg.File
		} else {
			got.Origin = ""
		}
		if err != nil || got != c.want {
			t.Errorf("%s/%s: user %q, %v, want %q", c.host, c.repository, got.Username, err, c.want.Username)
		}
	}
}

func TestWrongFilesAreErrorsThatQuoteNothing(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"not JSON":           {`{"auths":{"a":{"auth":hunter2`, "not JSON, at byte"},
		"another type":       {`{"auths":["hunter2"]}`, "auths is a array"},
		"not base64":         {`{"auths":{"reg.test":{"auth":"hunter2!"}}}`, `auths["reg.test"]: auth is not base64`},
		"no colon":           {`{"auths":{"reg.test":{"auth":"` + b64(secret) + `"}}}`, "auth is not base64 of username:password"},
		"no user":            {`{"auths":{"reg.test":{"auth":"` + b64(":"+secret) + `"}}}`, "auth is not base64 of username:password"},
		"helper with a path": {`{"credsStore":"../../hunter"}`, "not the name of a program"},
		"huge":               {`{"a":"` + strings.Repeat("x", maxFile) + `"}`, "at most 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := config(t, c.text)
			got, err := s.Find(t.Context(), "reg.test", "app")
			if err == nil || !got.Anonymous() || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "config.json") {
				t.Errorf("%v, %v does not say %q", got, err, c.says)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), b64(secret))) {
				t.Errorf("%v has the secret", err)
			}
		})
	}
	// What is wrong with one registry's entry is no matter of another's.
	s := config(t, `{"auths":{"bad.test":{"auth":"!"},"good.test":{"auth":"`+b64("u:p")+`"}}}`)
	if c, err := s.Find(t.Context(), "good.test", "app"); err != nil || c.Username != "u" {
		t.Errorf("%q, %v", c.Username, err)
	}
	if err := config(t, `{"auths":{"bad.test":{"auth":"!"},"good.test":{"auth":"`+b64("u:p")+`"}},"credsStore":"absent","credHelpers":{"a":"../x","b":""}}`).Check(); err == nil ||
		!strings.Contains(err.Error(), `auths["bad.test"]`) || strings.Contains(err.Error(), "good.test") || !strings.Contains(err.Error(), "docker-credential-absent: not an executable") || !strings.Contains(err.Error(), `"../x"`) {
		t.Errorf("check: %v", err)
	}
	if err := s.Check(); err == nil {
		t.Error("check finds nothing")
	}
	s = New(Config{File: t.TempDir()})
	if _, err := s.Find(t.Context(), "reg.test", "app"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

func TestFileIsReadAgainWhenItHasChanged(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config.json")
	s := New(Config{File: name})
	want := func(user string) {
		t.Helper()
		if c, err := s.Find(t.Context(), "reg.test", "app"); err != nil || c.Username != user {
			t.Errorf("user %q, %v, want %q", c.Username, err, user)
		}
	}
	replace := func(user string) {
		t.Helper()
		text := `{"auths":{"reg.test":{"auth":"` + b64(user+":p") + `"}}}`
		err := os.WriteFile(name+".new", []byte(text), 0o600)
		if err = errors.Join(err, os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	want("") // there is none yet
	replace("alice")
	want("alice")
	first := s.parsed
	want("alice")
	if s.parsed != first {
		t.Error("an unchanged file was read again")
	}
	replace("carol") // as long as alice
	want("carol")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	want("")
	if c, err := New(Config{}).Find(t.Context(), "reg.test", "app"); err != nil || !c.Anonymous() {
		t.Errorf("without a file: %v, %v", c, err)
	}
}

func TestHelpers(t *testing.T) {
	helper(t, "echo", `[ "$1" = get ] || exit 9; read -r server; printf '{"ServerURL":"%s","Username":"%s","Secret":"hunter2"}' "$server" "$server"`)
	helper(t, "token", `echo '{"ServerURL":"x","Username":"<token>","Secret":"hunter2"}'`)
	helper(t, "none", `echo credentials not found in native keychain; exit 1`)
	helper(t, "child", `sleep 600 & echo '{"Username":"u","Secret":"hunter2"}'`)
	auths := `"auths":{"reg.test":{"auth":"` + b64("file:p") + `"}}`
	for name, c := range map[string]struct {
		file, host, user, identity, origin string
	}{
		"of the host":                {`{"credHelpers":{"reg.test":"echo"},` + auths + `}`, "reg.test", "reg.test", "", "helper docker-credential-echo"},
		"of the hub":                 {`{"credsStore":"echo"}`, "registry-1.docker.io", "https://index.docker.io/v1/", "", "helper docker-credential-echo"},
		"of another host":            {`{"credHelpers":{"other.test":"echo"},` + auths + `}`, "reg.test", "file", "", ""},
		"of all":                     {`{"credsStore":"echo",` + auths + `}`, "reg.test", "reg.test", "", "helper docker-credential-echo"},
		"identity token":             {`{"credHelpers":{"reg.test":"token"}}`, "reg.test", "", secret, "helper docker-credential-token"},
		"has none, the store has":    {`{"credHelpers":{"reg.test":"none"},"credsStore":"echo"}`, "reg.test", "reg.test", "", "helper docker-credential-echo"},
		"have none, the file has":    {`{"credHelpers":{"reg.test":"none"},"credsStore":"none",` + auths + `}`, "reg.test", "file", "", ""},
		"nobody has any":             {`{"credsStore":"none"}`, "reg.test", "", "", ""},
		"its child keeps the output": {`{"credsStore":"child"}`, "reg.test", "u", "", "helper docker-credential-child"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config(t, c.file).Find(t.Context(), c.host, "app")
			if err != nil || got.Username != c.user || got.IdentityToken != c.identity || c.origin != "" && got.Origin != c.origin {
				t.Errorf("user %q of %q, %v", got.Username, got.Origin, err)
			}
		})
	}
}

func TestHelpersThatFailAreNamed(t *testing.T) {
	helper(t, "hangs", `sleep 600`)
	helper(t, "stubborn", `trap "" TERM INT PIPE; while :; do sleep 600; done`)
	helper(t, "rubbish", `echo hunter2`)
	helper(t, "half", `echo '{"Username":"hunter2"}'`)
	helper(t, "endless", `trap "" PIPE; while :; do echo hunter2hunter2hunter2hunter2hunter2; done 2>/dev/null`)
	helper(t, "refuses", `echo first; echo the vault is sealed >&2; exit 3`)
	helper(t, "speaks", `echo vault: 403; exit 1`)
	helper(t, "killed", `kill -9 $$`)
	for name, says := range map[string]string{
		"hangs": "no answer in 1s", "stubborn": "no answer in 1s", "rubbish": "its answer of 8 bytes is not the JSON", "half": "lacks Username or Secret",
		"endless": "writes more than 65536 bytes", "refuses": `exit status 3: "the vault is sealed"`, "speaks": `exit status 1: "vault: 403"`,
		"killed": "signal: killed", "absent": "not an executable in PATH",
	} {
		t.Run(name, func(t *testing.T) {
			s := config(t, `{"credHelpers":{"reg.test":"`+name+`"},"auths":{"other.test":{"auth":"`+b64("u:p")+`"}}}`)
			s.cfg.HelperTimeout = time.Second
			if name == "endless" {
				s.cfg.HelperTimeout = time.Hour
			}
			_, err := s.Find(t.Context(), "reg.test", "app")
			if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "docker-credential-"+name+": ") || name != "absent" && !strings.Contains(err.Error(), ": for reg.test: ") {
				t.Fatalf("%v does not say %q", err, says)
			}
			if strings.Contains(err.Error(), secret) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			if c, err := s.Find(t.Context(), "other.test", "app"); err != nil || c.Username != "u" {
				t.Errorf("another registry: %q, %v", c.Username, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := config(t, `{"credsStore":"hangs"}`).Find(ctx, "reg.test", "app"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's end: %v", err)
	}
}

func TestCredentialPrintsNothing(t *testing.T) {
	c := Credential{Username: secret, Password: secret, IdentityToken: secret, RegistryToken: secret, Origin: "a vault"}
	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "credential", c)
	for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s", c, c, c, c), fmt.Sprintf("%v %+v", struct{ C Credential }{c}, &struct{ C Credential }{c}), logged.String()} {
		if strings.Contains(text, secret) || !strings.Contains(text, "credentials of a vault") {
			t.Errorf("prints %q", text)
		}
	}
	if s := fmt.Sprint(Credential{}); s != "no credentials" {
		t.Errorf("nothing prints %q", s)
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"quay.io/team":{"identitytoken":"t"}}}`), "quay.io", "team/app")
	f.Add([]byte(`{"auths":{"reg.test":{"auth":"!"}},"credHelpers":{"reg.test":"x"},"credsStore":"y"}`), "reg.test", "app")
	f.Add([]byte(`{"auths":[1]}`), "", "")
	f.Fuzz(func(t *testing.T, data []byte, host, repository string) {
		parsed, err := parse(data)
		if err != nil {
			return
		}
		key, found := best(parsed.Auths, host, repository)
		if !found {
			return
		}
		if n := match(key, host, repository); n < 0 || n > len(repository) {
			t.Fatalf("key %q fits %q %q by %d", key, host, repository, n)
		}
		for other := range parsed.Auths {
			if match(other, host, repository) > match(key, host, repository) {
				t.Fatalf("key %q fits %q %q better than %q", other, host, repository, key)
			}
		}
		if c, err := parsed.Auths[key].credential(); err != nil && !c.Anonymous() {
			t.Fatal("an error and a credential")
		}
	})
}
