package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// verifiersOf are shell scripts by name.
func verifiersOf(t *testing.T, scripts map[string]string) *Verifiers {
	t.Helper()
	v := &Verifiers{Dir: t.TempDir(), Max: 10, Timeout: time.Minute}
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(v.Dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func TestVerifiers(t *testing.T) {
	out := t.TempDir()
	img := imageOf(t, "busybox", "index", "manifest")
	for _, row := range []struct {
		name    string
		scripts map[string]string
		change  func(*Verifiers)
		want    []string // of the refusal; none: accepted
	}{
		{"none", nil, nil, nil},
		{"accepts", map[string]string{"a": "exit 0"}, nil, nil},
		{"does not read", map[string]string{"a": "exec <&-; exit 0"}, nil, nil},
		{"refuses", map[string]string{"a": "echo not signed by us; exit 3"}, nil, []string{"image verifier a", "exit status 3", "not signed by us"}},
		{"one of two refuses", map[string]string{"a": "exit 0", "b": "exit 1"}, nil, []string{"image verifier b"}},
		{"the first refuses", map[string]string{"a": "exit 1", "b": "touch " + out + "/asked"}, nil, []string{"image verifier a"}},
		{"dies", map[string]string{"a": "kill -9 $$"}, nil, []string{"signal: killed"}},
		{"says much", map[string]string{"a": "head -c 1000000 /dev/zero | tr '\\0' x; exit 1"}, nil, []string{strings.Repeat("x", maxReason) + "..."}},
		{"says much on standard error", map[string]string{"a": "head -c 1000000 /dev/zero >&2; exit 0"}, nil, nil},
		{"too many", map[string]string{"a": "exit 0", "b": "exit 0"}, func(v *Verifiers) { v.Max = 1 }, []string{"has 2 files, 1 verifiers are allowed"}},
		{"any number", map[string]string{"a": "exit 0", "b": "exit 0"}, func(v *Verifiers) { v.Max = -1 }, nil},
		{"missing directory", nil, func(v *Verifiers) { v.Dir += "/absent" }, []string{"no such file"}},
		{"too slow", map[string]string{"a": "sleep 1000"}, func(v *Verifiers) { v.Timeout = 100 * time.Millisecond }, []string{"image verifier a", "has not answered within 100ms"}},
		{"is told", map[string]string{"a": `printf '%s\n' "$@" >` + out + `/args; cat >` + out + `/input`}, nil, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := verifiersOf(t, row.scripts)
			if row.change != nil {
				row.change(v)
			}
			err := v.Check(t.Context(), img)
			if (err != nil) != (row.want != nil) || err != nil && !errors.Is(err, ErrRefused) {
				t.Fatalf("got %v", err)
			}
			for _, want := range row.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v has no %q", err, want)
				}
			}
		})
	}
	args, _ := os.ReadFile(filepath.Join(out, "args"))
	if want := fmt.Sprintf("-name\ndocker.io/library/busybox:latest\n-digest\n%s\n-stdin-media-type\napplication/vnd.oci.descriptor.v1+json\n", sum("index")); string(args) != want {
		t.Errorf("arguments %q instead of %q", args, want)
	}
	input, _ := os.ReadFile(filepath.Join(out, "input"))
	if want := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":5}`, sum("index")); string(input) != want {
		t.Errorf("input %q instead of %q", input, want)
	}
	if _, err := os.Stat(filepath.Join(out, "asked")); err == nil {
		t.Error("the second was asked although the first has refused")
	}
}

func TestVerifierIsNoProgram(t *testing.T) {
	v := verifiersOf(t, nil)
	if err := os.WriteFile(filepath.Join(v.Dir, "README"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(t.Context(), imageOf(t, "busybox", "x")); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("got %v", err)
	}
}

// What a verifier starts and leaves behind ends with it, and does not hold up its answer.
func TestVerifierLeavesNothing(t *testing.T) {
	for name, script := range map[string]string{"with our pipes": "sleep 1000 & echo $! >%s", "without": "sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >%s"} {
		t.Run(name, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			v := verifiersOf(t, map[string]string{"a": fmt.Sprintf(script, pidFile)})
			if err := v.Check(t.Context(), imageOf(t, "busybox", "x")); err != nil {
				t.Error(err)
			}
			var pid int
			text, err := os.ReadFile(pidFile)
			if _, scanErr := fmt.Sscan(string(text), &pid); err != nil || scanErr != nil {
				t.Fatal(err, scanErr)
			}
			bound := time.Now().Add(30 * time.Second)
			for unix.Kill(pid, 0) == nil { // until it was reaped, by whoever is its parent now
				stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if bytes.Contains(stat, []byte(") Z ")) {
					break
				}
				if time.Now().After(bound) {
					_ = unix.Kill(pid, unix.SIGKILL) // it is the test's own
					t.Fatal("it lives on")
				}
			}
		})
	}
}

func TestVerifierCancelled(t *testing.T) {
	v := verifiersOf(t, map[string]string{"a": "sleep 1000"})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
	if err := v.Check(ctx, imageOf(t, "busybox", "x")); !errors.Is(err, gone) || errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
}

func TestVerifierLog(t *testing.T) {
	var text bytes.Buffer
	v := verifiersOf(t, map[string]string{"a": "echo said something >&2"})
	v.Log = slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := v.Check(t.Context(), imageOf(t, "busybox", "x")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), `name=a says="said something"`) {
		t.Errorf("log %q", &text)
	}
}
