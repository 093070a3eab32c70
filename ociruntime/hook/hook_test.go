package hook

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	one := 1
	for _, row := range []struct {
		name, script string
		timeout      *int
		want         string // in the error; "": none
	}{
		{"state, environment, arguments, directory", `[ "$(cat)" = state ] && [ "$A" = b ] && [ "$0" = zero ] && [ "$(pwd)" = ` + dir + ` ] && [ -z "$HOME" ]`, nil, ""},
		{"exit status and output", "echo out; echo err >&2; exit 3", nil, "createRuntime hook /bin/sh: exit status 3: out\nerr"},
		{"signal", "kill -TERM $$", nil, "createRuntime hook /bin/sh: signal: terminated"},
		{"too long, with its children", "sleep 1000 & echo waiting; wait", &one, "createRuntime hook /bin/sh: killed, it has not ended in 1s: waiting"},
		{"much output", "head -c 1000000 /dev/zero | tr '\\0' x; exit 1", nil, "exit status 1: xxx"},
		{"a child that stays", "sleep 3 & exit 0", nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			state := filepath.Join(dir, "state")
			if err := os.WriteFile(state, []byte("state"), 0o600); err != nil {
				t.Fatal(err)
			}
			in, err := os.Open(state)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			err = Run(t.Context(), CreateRuntime, specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", row.script, "zero"}, Env: []string{"A=b", "PATH=/usr/bin:/bin"}, Timeout: row.timeout}, dir, in)
			switch {
			case row.want == "" && err != nil:
				t.Error(err)
			case row.want != "" && (err == nil || !strings.HasPrefix(strings.TrimPrefix(err.Error(), "createRuntime hook /bin/sh: "), strings.TrimPrefix(row.want, "createRuntime hook /bin/sh: "))):
				t.Errorf("error %v, want %s", err, row.want)
			}
		})
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	err = Run(t.Context(), Poststop, specs.Hook{Path: "/no/such/hook"}, dir, null)
	if err == nil || !strings.Contains(err.Error(), "poststop hook /no/such/hook: ") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("missing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Poststart, specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "1000"}}, dir, null); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("canceled: %v", err)
	}
}

func TestAny(t *testing.T) {
	if Any(nil) || Any(&specs.Hooks{}) || !Any(&specs.Hooks{Poststop: []specs.Hook{{}}}) {
		t.Error("hooks are not counted")
	}
}
