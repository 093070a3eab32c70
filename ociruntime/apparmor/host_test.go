package apparmor

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// newHost makes a node of files, with a parser that keeps what it is given, and fails if the file "broken" is there.
func newHost(t *testing.T, loaded string) (h *Host, given func() string) {
	t.Helper()
	dir := t.TempDir()
	h = &Host{profiles: filepath.Join(dir, "profiles"), current: filepath.Join(dir, "current"), base: filepath.Join(dir, "base"),
		parsers: []string{filepath.Join(dir, "absent"), filepath.Join(dir, "parser")}}
	write(t, h.profiles, loaded, 0o600)
	write(t, h.parsers[1], "#!/bin/sh\ntest ! -e "+dir+"/broken || { echo syntax error; exit 1; }\ncat >>"+dir+"/given\necho '"+
		DefaultProfile+" (enforce)' >>"+h.profiles+"\n", 0o700)
	return h, func() string {
		data, err := os.ReadFile(filepath.Join(dir, "given"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "given"))
		return string(data)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestDetect(t *testing.T) {
	h, _ := newHost(t, "")
	file := filepath.Join(t.TempDir(), "enabled")
	if got, err := detect(file, h); got != nil || err != nil {
		t.Errorf("without the module: got %v, %v", got, err)
	}
	write(t, file, "N\n", 0o600)
	if got, err := detect(file, h); got != nil || err != nil {
		t.Errorf("disabled: got %v, %v", got, err)
	}
	write(t, file, "Y\n", 0o600)
	if got, err := detect(file, h); got != h || err != nil {
		t.Errorf("enabled: got %v, %v", got, err)
	}
	h.profiles += "x"
	if got, err := detect(file, h); got != nil || err == nil || !strings.Contains(err.Error(), "securityfs") {
		t.Errorf("enabled without securityfs: got %v, %v", got, err)
	}
}

func TestLoaded(t *testing.T) {
	h, _ := newHost(t, "k8s-a (enforce)\nwith (odd) name (complain)\na//child (enforce)\n")
	for name, want := range map[string]bool{"k8s-a": true, "k8s": false, "with (odd) name": true, "with": false, "a//child": true, "": false} {
		if got, err := h.Loaded(name); got != want || err != nil {
			t.Errorf("%q: got %v, %v", name, got, err)
		}
	}
	h.profiles += "x"
	if _, err := h.Loaded("k8s-a"); err == nil {
		t.Error("no error without a list")
	}
}

func TestLoadDefault(t *testing.T) {
	h, given := newHost(t, "other (enforce)\n")
	loaded := filepath.Join(t.TempDir(), "loaded")
	load := func(what string, want bool) {
		t.Helper()
		if err := h.LoadDefault(t.Context(), loaded); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if text := given(); (text != "") != want {
			t.Errorf("%s: the parser got %q", what, text)
		}
	}
	load("first", true)
	load("again", false)
	write(t, h.current, "criserver (enforce)\n", 0o600)
	load("another text", true)
	write(t, h.profiles, "other (enforce)\n", 0o600)
	load("somebody unloaded it", true)
	load("again", false)

	write(t, loaded, "half", 0o600)
	write(t, filepath.Join(filepath.Dir(h.profiles), "broken"), "", 0o600)
	if err := h.LoadDefault(t.Context(), loaded); err == nil || !strings.Contains(err.Error(), "syntax error") {
		t.Errorf("a parser that fails: %v", err)
	}
	write(t, h.parsers[1], "#!/bin/sh\nsleep 1000 &\nhead -c 1000000 /dev/zero | tr '\\0' x\nexit 3\n", 0o700)
	if err := h.LoadDefault(t.Context(), loaded); err == nil || !strings.Contains(err.Error(), "exit status 3: xxx") || len(err.Error()) > 2*maxOutput {
		t.Errorf("a parser that writes much and leaves a process behind: %.100v", err)
	}
	h.parsers = h.parsers[:1]
	if err := h.LoadDefault(t.Context(), loaded); !errors.Is(err, ErrNoParser) {
		t.Errorf("no parser: %v", err)
	}
}

func TestText(t *testing.T) {
	for name, prepare := range map[string]func(*Host){
		"plain":    func(*Host) {},
		"confined": func(h *Host) { write(t, h.current, "/usr/bin/cri server (enforce)\n", 0o600) },
		"abi": func(h *Host) {
			write(t, filepath.Join(h.base, abi), "", 0o600)
			write(t, h.current, "unconfined\n", 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newHost(t, "")
			prepare(h)
			got, err := h.text()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".profile")
			if *update {
				write(t, golden, string(got), 0o644)
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
