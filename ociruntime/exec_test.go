package ociruntime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func execText(t testing.TB, c *Container, args ...string) (string, int32) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := c.Exec(testContext(t), ExecConfig{Args: args, Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	defer e.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	<-e.Done()
	return string(out), e.Code()
}

func TestExec(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	c, _ := f.started(t, p, "sleep 1000", nil)
	for range 3 {
		if out, code := execText(t, c, "sh", "-c", "echo out; grep -c :/ /proc/self/cgroup; exit 7"); !strings.HasPrefix(out, "out\n") || code != 7 {
			t.Errorf("exec printed %q and exited with %d", out, code)
		}
	}
	if _, err := c.Exec(testContext(t), ExecConfig{Args: []string{"nope"}, Stdout: os.Stdout, Stderr: os.Stderr}); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("exec of a missing file: %v", err)
	}
	e, err := c.Exec(testContext(t), ExecConfig{Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	e.Close()
	if e.Code() != 137 {
		t.Errorf("killed exec has code %d", e.Code())
	}
	if out, _ := execText(t, c, "ps"); strings.Count(out, "sleep 1000") != 1 {
		t.Errorf("after the kill of an exec the container has:\n%s", out)
	}
}

// A command whose caller is gone while it is being started ends all the same, and its leaf is used again.
func TestExecAbandoned(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	c, _ := f.started(t, p, "sleep 1000", nil)
	gone, cancel := context.WithCancel(testContext(t))
	cancel()
	for late := 0; late < 5; {
		e, err := c.Exec(gone, ExecConfig{Args: []string{"sleep", "2000"}, Stdout: os.Stdout, Stderr: os.Stderr})
		switch {
		case err == nil: // pause answered before anybody looked for the caller: the command is the caller's
			if err := e.Kill(testContext(t)); err != nil {
				t.Fatal(err)
			}
			e.Close()
		case errors.Is(err, context.Canceled):
			late++
		default:
			t.Fatalf("exec for a caller that is gone: %v", err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		out, _ := execText(t, c, "ps")
		if !strings.Contains(out, "sleep 2000") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("abandoned commands go on:\n%s", out)
		}
	}
}

func TestTerminal(t *testing.T) {
	f := newFixture(t)
	p := f.pod(t, nil)
	spec := DefaultSpec("sh", "-c", "tty; stty size; echo x > /dev/console; ls -l /dev/console | head -c 1")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	c, log := f.create(t, p, spec, nil)
	if err := c.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c)
	if out := strings.ReplaceAll(logText(t, log), "\r", ""); out != "/dev/pts/0\n33 77\nx\nc" && out != "/dev/pts/0\n33 77\nx\nc\n" {
		t.Errorf("terminal shows %q", out)
	}
}

func BenchmarkExecTrue(b *testing.B) {
	f := newFixture(b)
	p := f.pod(b, nil)
	c, _ := f.started(b, p, "sleep 1000", nil)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for b.Loop() {
		e, err := c.Exec(context.Background(), ExecConfig{Args: []string{"true"}, Stdin: null, Stdout: null, Stderr: null})
		if err != nil {
			b.Fatal(err)
		}
		<-e.Done()
		e.Close()
	}
}

// A container that may write its groups may remove those of earlier execs, which says nothing of later ones.
func TestExecAfterLeafWasRemoved(t *testing.T) {
	f := newFixture(t)
	c, _ := f.started(t, f.pod(t, nil), "sleep 1000", nil)
	execText(t, c, "true")
	h := c.group.Paths()["freezer"]
	if unified := c.group.Paths()[""]; unified != "" {
		h = unified
	}
	leaves, err := filepath.Glob(h + "/exec-*")
	if err != nil || len(leaves) != 1 {
		t.Fatalf("leaves of execs: %v, %v", leaves, err)
	}
	if err := os.Remove(leaves[0]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, code := execText(t, c, "echo", "x"); out != "x\n" || code != 0 {
			t.Errorf("exec: %q, exit code %d", out, code)
		}
	}
}
