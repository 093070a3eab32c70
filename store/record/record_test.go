package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type sample struct {
	Name  string
	Pids  []int
	Notes map[string]string
}

var value = sample{Name: "pod\n\"x\"", Pids: []int{1, 4194304}, Notes: map[string]string{"a": "ü", "b": ""}}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestRoundTripAndReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	for _, want := range []sample{value, {}, {Name: strings.Repeat("long", 1<<16)}} {
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := Read(path, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff([]string{"r"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
}

func TestGoldenFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	if err := Write(path, map[string]int{"a": 1}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "criserver-record 1 015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862 7\n{\"a\":1}"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestEveryFlippedBitAndEveryTruncationIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	if err := Write(path, value); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	mustBeCorrupt := func(what string, at int, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := Read(path, &got); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s %d: error %v, want ErrCorrupt", what, at, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := append([]byte(nil), good...)
			bad[i] ^= 1 << bit
			mustBeCorrupt("flip in byte", i, bad)
		}
		mustBeCorrupt("truncation to", i, good[:i])
	}
	mustBeCorrupt("one byte appended to", len(good), append(append([]byte(nil), good...), '\n'))
	mustBeCorrupt("zeroes of length", len(good), make([]byte, len(good)))
	mustBeCorrupt("file beyond", MaxSize, make([]byte, MaxSize+1))
}

func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	var got sample
	if err := Read(filepath.Join(dir, "none"), &got); !errors.Is(err, ErrNotExist) || errors.Is(err, ErrCorrupt) {
		t.Errorf("missing file: %v", err)
	}
	path := filepath.Join(dir, "r")
	if err := Write(path, "a string"); err != nil {
		t.Fatal(err)
	}
	if err := Read(path, &got); !errors.Is(err, ErrCorrupt) {
		t.Errorf("record of another type: %v, want ErrCorrupt", err)
	}
}

func TestFailedWriteKeepsTheFormerRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	if err := Write(path, value); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, make(chan int)); err == nil {
		t.Error("a channel was written")
	}
	if err := Write(path, strings.Repeat("x", MaxSize)); err == nil {
		t.Error("a record beyond MaxSize was written")
	}
	var got sample
	if err := Read(path, &got); err != nil || !cmp.Equal(got, value) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "d"), value); err == nil {
		t.Error("a directory was replaced")
	}
	if diff := cmp.Diff([]string{"d", "r"}, names(t, dir)); diff != "" {
		t.Errorf("files left behind: %s", diff)
	}
}

func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	if _, err := SetAside(path); !errors.Is(err, ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	for _, want := range []string{path + ".corrupt-1", path + ".corrupt-2"} {
		if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := SetAside(path)
		if err != nil || got != want {
			t.Fatalf("set aside as %q, %v, want %q", got, err, want)
		}
		content, err := os.ReadFile(want)
		if err != nil || string(content) != want {
			t.Errorf("%s holds %q, %v", want, content, err)
		}
	}
	if diff := cmp.Diff([]string{"r.corrupt-1", "r.corrupt-2"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestSweepRemovesOnlyTemporaries(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"r", "r.tmp-123", "r.corrupt-1"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"r", "r.corrupt-1"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	if err := Sweep(filepath.Join(dir, "none")); !errors.Is(err, ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestConcurrentWritersLeaveOneWholeRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	if err := Write(path, sample{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 100 {
				if err := Write(path, sample{Pids: []int{i}, Name: strings.Repeat("n", i*1000)}); err != nil {
					t.Error(err)
				}
				var got sample
				if err := Read(path, &got); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff([]string{"r"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(""))
	f.Add(append(header([]byte(`{"a":1}`)), `{"a":1}`...))
	f.Add([]byte("criserver-record 1 00 0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := verify(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error %v is not ErrCorrupt", err)
			}
			return
		}
		if !cmp.Equal(append(header(payload), payload...), data) {
			t.Errorf("accepted a file that Write would not make: %q", data)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	path := filepath.Join(b.TempDir(), "r")
	v := sample{Name: strings.Repeat("x", 4096)}
	for b.Loop() {
		if err := Write(path, v); err != nil {
			b.Fatal(err)
		}
	}
}
