package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteAndCompare(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "before.json")
	run := func(want int, args ...string) string {
		t.Helper()
		var out strings.Builder
		left, err := run(args, &out)
		if err != nil || left != want {
			t.Fatalf("%v: %d differences, %v; want %d:\n%s", args, left, err, want, out.String())
		}
		return out.String()
	}
	run(0, "write", file, "-dir", dir, "-match", "nothing that others do", "-ignore", "/unseen ")
	for _, name := range []string{"unseen", "seen"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := "file is left: " + filepath.Join(dir, "seen") + " (file)\n"
	if got := run(1, "compare", file, "-wait", "1ms"); got != want {
		t.Errorf("compare wrote %q, want %q", got, want)
	}
	if err := os.Remove(filepath.Join(dir, "seen")); err != nil {
		t.Fatal(err)
	}
	run(0, "compare", file)
}

func TestMisuse(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"write"}, {"look", "x"}, {"compare", bad}, {"compare", bad + ".absent"}, {"write", bad, "-x"}} {
		if _, err := run(args, &strings.Builder{}); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}
