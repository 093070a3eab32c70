package volume

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeadFileSystemCostsOneThread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		alive := make(chan struct{})
		look := func(string, bool) error {
			calls.Add(1)
			<-alive
			return nil
		}
		s := Sources{look: look}
		for range 3 {
			began := time.Now()
			err := s.Make(t.Context(), "/dead")
			want(t, "says why", err != nil && strings.Contains(err.Error(), "its file system has not answered"), true)
			want(t, "gave up after", time.Since(began), sourceBound)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		want(t, "gives up with its caller", errors.Is(s.Make(ctx, "/dead"), context.DeadlineExceeded), true)
		want(t, "asked", int(calls.Load()), 1)
		close(alive)
		must(t, s.Make(t.Context(), "/dead"))
		synctest.Wait()
		must(t, s.Make(t.Context(), "/dead"))
		want(t, "asked again", calls.Load() >= 2, true)
	})
}

func TestMakeSource(t *testing.T) {
	dir := t.TempDir()
	must(t, makeSource(dir+"/a/b", true))
	st, err := os.Stat(dir + "/a/b")
	must(t, err)
	want(t, "mode", st.Mode(), os.ModeDir|0o755)
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	must(t, makeSource(dir+"/file", false))
	want(t, "must be there", errors.Is(makeSource(dir+"/none", false), os.ErrNotExist), true)
	want(t, "below a file", makeSource(dir+"/file/x", true) != nil, true)
}
